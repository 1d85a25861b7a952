"""What no well-formed row has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cpt_residual.data.inspection.chunks import Chunk, Mask
from cpt_residual.data.rows import CONTINUATION, LOSS, PADDING, START

_KNOWN_BITS = START | LOSS | PADDING | CONTINUATION


class Faults:
    """Counts, by kind, tokens that break the format; remembers the first row of each kind."""

    def __init__(self, *, pad_id: int) -> None:
        self._pad_id = pad_id
        self._found: dict[str, tuple[int, int]] = {}

    def look(self, chunk: Chunk) -> None:
        """The next rows."""
        for what, wrong in self._kinds(chunk):
            if wrong.any():
                row = chunk.first + int(np.flatnonzero(wrong.any(axis=1))[0])
                count, first = self._found.get(what, (0, row))
                self._found[what] = (count + int(np.count_nonzero(wrong)), first)

    def lines(self) -> list[str]:
        """One line for each kind that was met."""
        return [
            f"{what}: {count:,} times, first in row {row:,}"
            for what, (count, row) in self._found.items()
        ]

    def _kinds(self, chunk: Chunk) -> Iterator[tuple[str, Mask]]:
        padding = chunk.padding
        yield "a row that does not begin with a segment", ~chunk.start[:, :1]
        yield "a label at the start of a segment", chunk.loss & chunk.start
        yield "a label on padding", chunk.loss & padding
        yield "a token after padding", ~padding[:, 1:] & padding[:, :-1]
        yield (
            "padding that is no segment of its own",
            (padding[:, 1:] & ~padding[:, :-1] & ~chunk.start[:, 1:]),
        )
        yield "another id than pad_id in padding", padding & (chunk.ids != self._pad_id)
        yield "a continuation that starts no segment", chunk.continuation & ~chunk.start
        yield "an unknown flag", (chunk.flags & np.uint8(~_KNOWN_BITS & 0xFF)) != 0
