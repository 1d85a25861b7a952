"""The pack as a torch data set: rows in their order, never shuffled, never dropped, never twice.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from cpt_residual.data.packing.pack_format import IGNORED_LABEL, PackView
from cpt_residual.data.packing.rows import PADDING

_ROWS_AT_ONCE = 65_536

Batch = dict[str, torch.Tensor | bool]


class PackDataset(Dataset[Batch]):
    """`num_rows` rows: those of the pack, then filler rows that give no loss.

    Filler makes the last step as wide as the others, so that neither Trainer nor accelerate has a
    reason to drop the tail or to repeat rows from the start."""

    def __init__(self, pack: PackView, *, num_rows: int) -> None:
        if num_rows < len(pack):
            raise ValueError(f"{num_rows} rows cannot hold the {len(pack)} rows of the pack")
        self._pack = pack
        self._num_rows = num_rows
        length = pack.sequence_length
        self._filler = (
            np.zeros(length, dtype=np.int64),
            np.arange(length, dtype=np.int64),
            np.full(length, IGNORED_LABEL, dtype=np.int64),
        )

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once: ids_BT, position_ids_BT, labels_BT (int64)."""
        rows = [self._row(int(index)) for index in indices]
        ids_BT, positions_BT, labels_BT = (
            torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
        )
        # No attention mask and no cache: only then do restarting positions separate documents.
        return {
            "input_ids": ids_BT,
            "position_ids": positions_BT,
            "labels": labels_BT,
            "use_cache": False,
        }

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not 0 <= index < self._num_rows:
            raise IndexError(index)
        return self._pack.row(index) if index < len(self._pack) else self._filler

    def tokens_after_steps(self, rows_per_step: int) -> list[int]:
        """Real tokens (padding excluded) seen after step 1, 2, ... of `rows_per_step` rows."""
        flags = self._pack.flags
        per_row = np.zeros(self._num_rows, dtype=np.int64)
        for start in range(0, len(flags), _ROWS_AT_ONCE):
            part = np.asarray(flags[start : start + _ROWS_AT_ONCE])
            per_row[start : start + len(part)] = ((part & PADDING) == 0).sum(axis=1)
        return [int(total) for total in per_row.cumsum()[rows_per_step - 1 :: rows_per_step]]


def collate(batch: Batch) -> Batch:
    """The data set already returns whole batches."""
    return batch
