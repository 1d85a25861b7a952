"""The rows of a pack, a few million tokens at a time.

R = rows of a chunk, L = sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_residual.data.pack_format import PackView
from cpt_residual.data.rows import CONTINUATION, LOSS, PADDING, START, Flags, Ids

_CHUNK_TOKENS = 1 << 22

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chunk:
    """Rows `first`, `first + 1`, ...: sources_R, and ids and the bits of the flags, all (R, L)."""

    first: int
    sources: npt.NDArray[np.uint8]
    ids: Ids
    flags: Flags
    start: Mask
    loss: Mask
    padding: Mask
    continuation: Mask

    @property
    def num_rows(self) -> int:
        return len(self.ids)


def chunks(view: PackView, *, chunk_tokens: int = _CHUNK_TOKENS) -> Iterator[Chunk]:
    """All rows in order. Some 20 bytes of memory for each token of a chunk, whatever the pack."""
    num_rows, length = view.ids.shape
    step = max(1, chunk_tokens // length)
    for first in range(0, num_rows, step):
        flags = np.asarray(view.flags[first : first + step])
        yield Chunk(
            first=first,
            sources=np.asarray(view.row_sources[first : first + step]),
            ids=np.asarray(view.ids[first : first + step]),
            flags=flags,
            start=(flags & START) != 0,
            loss=(flags & LOSS) != 0,
            padding=(flags & PADDING) != 0,
            continuation=(flags & CONTINUATION) != 0,
        )
        view.let_go()
