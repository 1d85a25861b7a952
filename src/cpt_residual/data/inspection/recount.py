"""Counting a pack again from its rows, some million tokens at a time.

L = sequence length, P = phases, R = rows read at a time, S = sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.packing.pack_format import PackView
from cpt_residual.data.packing.pack_ledger import PackLedger
from cpt_residual.data.packing.row_counts import RowCounts, SpecialIds
from cpt_residual.data.packing.rows import CONTINUATION, LOSS, PADDING, START, Flags, Ids

_KNOWN_BITS = START | LOSS | PADDING | CONTINUATION


class Recount:
    """What the rows hold.

    counts: by source; tokens_PS: real tokens by the phases of the ledger; max_id: of real tokens;
    lengths: how many segments (documents, or parts of one that was split) of each source have how
    many tokens.
    """

    def __init__(self, ledger: PackLedger) -> None:
        num_sources = len(ledger.sources)
        self._special = SpecialIds(bos=ledger.bos_id, eos=ledger.eos_id, pad=ledger.pad_id)
        self._phases = np.array([phase.first_row for phase in ledger.phases], dtype=np.int64)
        self.counts = [RowCounts() for _ in range(num_sources)]
        self.tokens_PS = np.zeros((len(ledger.phases), num_sources), dtype=np.int64)
        self.max_id = 0
        self.lengths: list[Counter[int]] = [Counter() for _ in range(num_sources)]
        self._faults: dict[str, tuple[int, int]] = {}

    def counted(self, source: int | None = None) -> dict[str, int]:
        """Counts of one source, or of all together, named as in the ledger of a source."""
        counts = sum(self.counts, RowCounts()) if source is None else self.counts[source]
        return counts.as_dict() | {"masked_tokens": counts.tokens - counts.loss_tokens}

    def faults(self) -> list[str]:
        """One line for each kind of token or row that breaks the format."""
        return [
            f"{what}: {count:,} times, first in row {row:,}"
            for what, (count, row) in self._faults.items()
        ]

    def add(self, view: PackView, rows: slice) -> None:
        """The next rows: ids and flags are (R, L)."""
        ids, flags = np.asarray(view.ids[rows]), np.asarray(view.flags[rows])
        sources = np.asarray(view.row_sources[rows])
        padding = (flags & PADDING) != 0
        for number in np.unique(sources).tolist():
            mine = sources == number
            self.counts[number] += RowCounts.of(ids[mine], flags[mine], self._special)
        if len(self._phases):
            at = np.arange(rows.start, rows.start + len(ids), dtype=np.int64)
            of_phase = np.maximum(np.searchsorted(self._phases, at, side="right") - 1, 0)
            np.add.at(self.tokens_PS, (of_phase, sources), np.count_nonzero(~padding, axis=1))
        self.max_id = max(self.max_id, int(ids[~padding].max(initial=0)))
        self._add_lengths(flags, sources)
        for what, wrong in self._wrong(ids, flags):
            if wrong.any():
                row = rows.start + int(np.flatnonzero(wrong.any(axis=1))[0])
                count, first = self._faults.get(what, (0, row))
                self._faults[what] = (count + int(np.count_nonzero(wrong)), first)

    def _add_lengths(self, flags: Flags, sources: npt.NDArray[np.uint8]) -> None:
        begins = (flags & START) != 0
        begins[:, 0] = True
        places = np.flatnonzero(begins)
        lengths = np.diff(places, append=begins.size)
        real = (flags.ravel()[places] & PADDING) == 0
        of_segment = sources[places // flags.shape[1]]
        for number, counts in enumerate(self.lengths):
            values, times = np.unique(lengths[real & (of_segment == number)], return_counts=True)
            counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))

    def _wrong(self, ids: Ids, flags: Flags) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
        start, loss, padding, continuation = (
            (flags & bit) != 0 for bit in (START, LOSS, PADDING, CONTINUATION)
        )
        ends = padding[:, 1:] & ~padding[:, :-1]
        yield "a row that does not begin with a segment", ~start[:, :1]
        yield "a label at the start of a segment", loss & start
        yield "a label on padding", loss & padding
        yield "a token after padding", ~padding[:, 1:] & padding[:, :-1]
        yield "padding that is no segment of its own", ends & ~start[:, 1:]
        yield "another id than pad_id in padding", padding & (ids != self._special.pad)
        yield "a continuation that starts no segment", continuation & ~start
        yield "an unknown flag", (flags & np.uint8(~_KNOWN_BITS & 0xFF)) != 0


def recount(view: PackView, report: ProgressReport, *, chunk_tokens: int = 1 << 22) -> Recount:
    """Read every row once: some 20 bytes of memory for each token of a chunk, whatever the pack.

    Every number in `row_sources` has to be one of a source.
    """
    found = Recount(view.ledger)
    num_rows, length = view.ids.shape
    step = max(1, chunk_tokens // length)
    for first in range(0, num_rows, step):
        found.add(view, slice(first, first + step))
        view.let_go()
        report(min(first + step, num_rows), num_rows, "rows")
    return found
