"""Counting a pack again from its rows: in chunks, whatever its size.

B = blocks of rows, C = counts, P = phases, R = rows of a chunk, S = sources.
"""

from __future__ import annotations

import numpy as np

from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.inspection.chunks import Chunk, Counts, chunks
from cpt_residual.data.inspection.document_lengths import DocumentLengths
from cpt_residual.data.inspection.faults import Faults
from cpt_residual.data.pack_format import PackView
from cpt_residual.data.pack_ledger import PackLedger

COUNTED = (
    "rows",
    "tokens",
    "padding",
    "loss_tokens",
    "masked_tokens",
    "documents",
    "continuations",
    "bos_tokens",
    "eos_tokens",
)
"""Named as in the ledger of a source."""

MAX_BLOCKS = 120
_FEW_ROWS = 32
_ROWS_OF_A_BLOCK = 16
_TOKENS, _PADDING = COUNTED.index("tokens"), COUNTED.index("padding")


class Recount:
    """What the rows hold.

    counts_SC: by source and by `COUNTED`; tokens_BS: real tokens by source along the rows, in up
    to `MAX_BLOCKS` blocks of them; padding_B: the padding beside them; tokens_PS: by the phases of
    the ledger; max_id: of real tokens.
    """

    def __init__(self, ledger: PackLedger) -> None:
        self._ledger = ledger
        num_sources, num_blocks = len(ledger.sources), _num_blocks(ledger.num_rows)
        self._phases = np.array([phase.first_row for phase in ledger.phases], dtype=np.int64)
        self.counts_SC: Counts = np.zeros((num_sources, len(COUNTED)), dtype=np.int64)
        self.tokens_BS: Counts = np.zeros((num_blocks, num_sources), dtype=np.int64)
        self.tokens_PS: Counts = np.zeros((len(ledger.phases), num_sources), dtype=np.int64)
        self.padding_B: Counts = np.zeros(num_blocks, dtype=np.int64)
        self.max_id = 0
        self.documents = DocumentLengths(ledger)
        self.num_unfinished = 0
        self.faults = Faults(pad_id=ledger.pad_id)

    def counted(self, source: int | None = None) -> dict[str, int]:
        """Counts of one source, or of all together, by name."""
        counts = self.counts_SC.sum(axis=0) if source is None else self.counts_SC[source]
        return dict(zip(COUNTED, counts.tolist(), strict=True))

    def add(self, chunk: Chunk) -> None:
        """The next rows."""
        counts_RC = self._counts(chunk)
        tokens_R = counts_RC[:, _TOKENS]
        np.add.at(self.counts_SC, chunk.sources, counts_RC)
        rows = np.arange(chunk.first, chunk.first + chunk.num_rows, dtype=np.int64)
        of_block = rows * len(self.padding_B) // self._ledger.num_rows
        np.add.at(self.tokens_BS, (of_block, chunk.sources), tokens_R)
        np.add.at(self.padding_B, of_block, counts_RC[:, _PADDING])
        if len(self._phases):
            of_phase = np.maximum(np.searchsorted(self._phases, rows, side="right") - 1, 0)
            np.add.at(self.tokens_PS, (of_phase, chunk.sources), tokens_R)
        self.max_id = max(self.max_id, int(chunk.ids[~chunk.padding].max(initial=0)))
        self.documents.add(chunk)
        self.faults.look(chunk)

    def _counts(self, chunk: Chunk) -> Counts:
        """By row and by `COUNTED`."""
        bos_id, eos_id = self._ledger.bos_id, self._ledger.eos_id
        real = ~chunk.padding
        begins = chunk.start & real & ~chunk.continuation
        is_bos = begins & (chunk.ids == bos_id) if bos_id is not None else np.zeros_like(begins)
        is_eos = real & (chunk.ids == eos_id)
        parts = (
            real,
            chunk.padding,
            chunk.loss,
            real & ~chunk.loss,
            begins,
            chunk.start & real & chunk.continuation,
            is_bos,
            is_eos & ~is_bos,
        )
        ones = np.ones(chunk.num_rows, dtype=np.int64)
        return np.stack([ones, *(np.count_nonzero(part, axis=1) for part in parts)], axis=1)


def _num_blocks(num_rows: int) -> int:
    """Each row alone when there are few, else blocks of enough rows to show shares of sources."""
    return min(num_rows, MAX_BLOCKS, max(_FEW_ROWS, num_rows // _ROWS_OF_A_BLOCK))


def recount(view: PackView, report: ProgressReport, *, chunk_tokens: int = 1 << 22) -> Recount:
    """Read every row once, in memory that does not grow with the pack.

    Every number in `row_sources` has to be one of a source.
    """
    found = Recount(view.ledger)
    for chunk in chunks(view, chunk_tokens=chunk_tokens):
        found.add(chunk)
        report(chunk.first + chunk.num_rows, len(view), "rows")
    found.num_unfinished = found.documents.finish()
    return found
