"""Counting a pack again from its rows, some million tokens at a time.

L = sequence length, P = phases, R = rows of a chunk, S = sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.packing.pack_format import PackView
from cpt_residual.data.packing.pack_ledger import PackLedger
from cpt_residual.data.packing.rows import CONTINUATION, LOSS, PADDING, START, Flags, Ids

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

_TOKENS = COUNTED.index("tokens")
_KNOWN_BITS = START | LOSS | PADDING | CONTINUATION

_Counts = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Chunk:
    """Rows `first`, `first + 1`, ...: sources_R, and ids, flags and their bits, all (R, L)."""

    first: int
    sources: npt.NDArray[np.uint8]
    ids: Ids
    flags: Flags
    start: _Mask
    loss: _Mask
    padding: _Mask
    continuation: _Mask

    @classmethod
    def of(cls, view: PackView, rows: slice) -> _Chunk:
        flags = np.asarray(view.flags[rows])
        return cls(
            first=rows.start,
            sources=np.asarray(view.row_sources[rows]),
            ids=np.asarray(view.ids[rows]),
            flags=flags,
            start=(flags & START) != 0,
            loss=(flags & LOSS) != 0,
            padding=(flags & PADDING) != 0,
            continuation=(flags & CONTINUATION) != 0,
        )


class Recount:
    """What the rows hold.

    counts_SC: by source and by `COUNTED`; tokens_PS: real tokens by the phases of the ledger;
    max_id: of real tokens; lengths: how many segments (documents, or parts of one that was split)
    of each source have how many tokens.
    """

    def __init__(self, ledger: PackLedger) -> None:
        self._ledger = ledger
        num_sources = len(ledger.sources)
        self._phases = np.array([phase.first_row for phase in ledger.phases], dtype=np.int64)
        self.counts_SC: _Counts = np.zeros((num_sources, len(COUNTED)), dtype=np.int64)
        self.tokens_PS: _Counts = np.zeros((len(ledger.phases), num_sources), dtype=np.int64)
        self.max_id = 0
        self.lengths: list[Counter[int]] = [Counter() for _ in ledger.sources]
        self._faults: dict[str, tuple[int, int]] = {}

    def counted(self, source: int | None = None) -> dict[str, int]:
        """Counts of one source, or of all together, by name."""
        counts = self.counts_SC.sum(axis=0) if source is None else self.counts_SC[source]
        return dict(zip(COUNTED, counts.tolist(), strict=True))

    def faults(self) -> list[str]:
        """One line for each kind of token or row that breaks the format."""
        return [
            f"{what}: {count:,} times, first in row {row:,}"
            for what, (count, row) in self._faults.items()
        ]

    def add(self, chunk: _Chunk) -> None:
        """The next rows."""
        counts_RC = self._counts(chunk)
        np.add.at(self.counts_SC, chunk.sources, counts_RC)
        if len(self._phases):
            rows = np.arange(chunk.first, chunk.first + len(chunk.ids), dtype=np.int64)
            of_phase = np.maximum(np.searchsorted(self._phases, rows, side="right") - 1, 0)
            np.add.at(self.tokens_PS, (of_phase, chunk.sources), counts_RC[:, _TOKENS])
        self.max_id = max(self.max_id, int(chunk.ids[~chunk.padding].max(initial=0)))
        self._add_lengths(chunk)
        for what, wrong in self._wrong(chunk):
            if wrong.any():
                row = chunk.first + int(np.flatnonzero(wrong.any(axis=1))[0])
                count, first = self._faults.get(what, (0, row))
                self._faults[what] = (count + int(np.count_nonzero(wrong)), first)

    def _counts(self, chunk: _Chunk) -> _Counts:
        """By row and by `COUNTED`."""
        bos_id, eos_id = self._ledger.bos_id, self._ledger.eos_id
        real = ~chunk.padding
        begins = chunk.start & real & ~chunk.continuation
        is_bos = begins & (chunk.ids == bos_id) if bos_id is not None else np.zeros_like(begins)
        parts = (
            real,
            chunk.padding,
            chunk.loss,
            real & ~chunk.loss,
            begins,
            chunk.start & real & chunk.continuation,
            is_bos,
            real & (chunk.ids == eos_id) & ~is_bos,
        )
        ones = np.ones(len(chunk.ids), dtype=np.int64)
        return np.stack([ones, *(np.count_nonzero(part, axis=1) for part in parts)], axis=1)

    def _add_lengths(self, chunk: _Chunk) -> None:
        begins = chunk.start.copy()
        begins[:, 0] = True
        places = np.flatnonzero(begins)
        lengths = np.diff(places, append=begins.size)
        real = ~chunk.padding.ravel()[places]
        of_segment = chunk.sources[places // begins.shape[1]]
        for number, counts in enumerate(self.lengths):
            values, times = np.unique(lengths[real & (of_segment == number)], return_counts=True)
            counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))

    def _wrong(self, chunk: _Chunk) -> Iterator[tuple[str, _Mask]]:
        padding = chunk.padding
        ends = padding[:, 1:] & ~padding[:, :-1]
        yield "a row that does not begin with a segment", ~chunk.start[:, :1]
        yield "a label at the start of a segment", chunk.loss & chunk.start
        yield "a label on padding", chunk.loss & padding
        yield "a token after padding", ~padding[:, 1:] & padding[:, :-1]
        yield "padding that is no segment of its own", ends & ~chunk.start[:, 1:]
        yield "another id than pad_id in padding", padding & (chunk.ids != self._ledger.pad_id)
        yield "a continuation that starts no segment", chunk.continuation & ~chunk.start
        yield "an unknown flag", (chunk.flags & np.uint8(~_KNOWN_BITS & 0xFF)) != 0


def recount(view: PackView, report: ProgressReport, *, chunk_tokens: int = 1 << 22) -> Recount:
    """Read every row once: some 20 bytes of memory for each token of a chunk, whatever the pack.

    Every number in `row_sources` has to be one of a source.
    """
    found = Recount(view.ledger)
    num_rows, length = view.ids.shape
    step = max(1, chunk_tokens // length)
    for first in range(0, num_rows, step):
        found.add(_Chunk.of(view, slice(first, first + step)))
        view.let_go()
        report(min(first + step, num_rows), num_rows, "rows")
    return found
