"""From encoded documents to rows of fixed length: pure assembly, no files, no randomness.

L = sequence length. Every row holds segments (whole documents or parts of one) and, perhaps, a
padding tail. Attention and positions restart at every segment.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONTINUATION",
    "LOSS",
    "PADDING",
    "START",
    "ConcatChunk",
    "Encoded",
    "Flags",
    "Ids",
    "Row",
    "RowPacker",
    "WholeDocuments",
    "cut_row",
]

Ids = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.uint8]
Loss = npt.NDArray[np.bool_]

Encoded = tuple[Ids, Loss]
"""A document's token ids and, for each, whether its label bears loss (never the first)."""

START = 1
"""Bit 0: first token of a segment (a document, a document's continuation, or the padding tail)."""
LOSS = 2
"""Bit 1: the label of this token bears loss. Never set together with START."""
PADDING = 4
"""Bit 2: not a token of any document."""
CONTINUATION = 8
"""Bit 3, only with START in column 0: the segment continues the document of an earlier row."""


@dataclass(frozen=True)
class Row:
    """One packed row: ids_L, flags_L and how many of its L tokens are real (not padding)."""

    ids: Ids
    flags: Flags
    num_tokens: int


class RowPacker(Protocol):
    """Takes documents in order and gives rows. `pending_tokens`: taken but in no row given yet."""

    @property
    def pending_tokens(self) -> int: ...

    def add(self, document: Encoded) -> None:
        """Take one document."""
        ...

    def finish(self) -> None:
        """No document follows: make what is pending available as padded rows."""
        ...

    def next_row(self) -> Row | None:
        """The next finished row, or None when another document is needed first."""
        ...


class _Assembly:
    """A row under construction."""

    def __init__(self, length: int, pad_id: int) -> None:
        self.ids: Ids = np.full(length, pad_id, dtype=np.uint32)
        self.flags: Flags = np.full(length, PADDING, dtype=np.uint8)
        self.filled = 0

    @property
    def room(self) -> int:
        return len(self.ids) - self.filled

    def append(self, document: Encoded, first: int, last: int) -> None:
        """Add tokens first..last-1 of `document` as one segment."""
        ids, loss = document
        start, end = self.filled, self.filled + last - first
        self.ids[start:end] = ids[first:last]
        self.flags[start:end] = np.where(loss[first:last], LOSS, 0)
        self.flags[start] = START | (CONTINUATION if first else 0)
        self.filled = end

    def row(self) -> Row:
        if self.room:
            self.flags[self.filled] |= START
        return Row(self.ids, self.flags, self.filled)


class ConcatChunk:
    """Documents end to end, cut every L tokens; a long document continues in the next row.

    No padding but in the very last row. The price: the token after a cut has no label and does
    not see what came before it (at most one token in L, counted as masked).
    """

    def __init__(self, length: int, *, pad_id: int) -> None:
        self._length = length
        self._pad_id = pad_id
        self._open = _Assembly(length, pad_id)
        self._ready: deque[Row] = deque()

    @property
    def pending_tokens(self) -> int:
        return self._open.filled + sum(row.num_tokens for row in self._ready)

    def add(self, document: Encoded) -> None:
        position, num_tokens = 0, len(document[0])
        while position < num_tokens:
            taken = min(self._open.room, num_tokens - position)
            self._open.append(document, position, position + taken)
            position += taken
            if self._open.room == 0:
                self._close()

    def finish(self) -> None:
        if self._open.filled:
            self._close()

    def next_row(self) -> Row | None:
        return self._ready.popleft() if self._ready else None

    def _close(self) -> None:
        self._ready.append(self._open.row())
        self._open = _Assembly(self._length, self._pad_id)


class WholeDocuments:
    """Best fit over a bounded number of open rows; no document is ever split.

    A document goes into the open row with the least room that still holds it. When it fits
    nowhere and all rows are in use, the fullest row is given out first. The price is padding.
    """

    def __init__(self, length: int, *, pad_id: int, num_open_rows: int = 64) -> None:
        self._length = length
        self._pad_id = pad_id
        self._num_open_rows = num_open_rows
        self._num_opened = 0
        self._open: dict[int, _Assembly] = {}  # by number, oldest first
        self._rooms: list[tuple[int, int]] = []  # (room, number) of the open rows, sorted
        self._ready: deque[Row] = deque()

    @property
    def pending_tokens(self) -> int:
        open_tokens = sum(row.filled for row in self._open.values())
        return open_tokens + sum(row.num_tokens for row in self._ready)

    def add(self, document: Encoded) -> None:
        num_tokens = len(document[0])
        assert num_tokens <= self._length, "a document longer than a row must be refused before"
        best = bisect_left(self._rooms, (num_tokens, 0))
        if best < len(self._rooms):
            _, number = self._rooms.pop(best)
        else:
            if len(self._rooms) == self._num_open_rows:
                self._close(self._rooms.pop(0)[1])
            number = self._num_opened
            self._num_opened += 1
            self._open[number] = _Assembly(self._length, self._pad_id)
        row = self._open[number]
        row.append(document, 0, num_tokens)
        if row.room:
            insort(self._rooms, (row.room, number))
        else:
            self._close(number)

    def finish(self) -> None:
        self._rooms.clear()
        for number in list(self._open):
            self._close(number)

    def next_row(self) -> Row | None:
        return self._ready.popleft() if self._ready else None

    def _close(self, number: int) -> None:
        self._ready.append(self._open.pop(number).row())


def cut_row(row: Row, num_tokens: int, *, pad_id: int) -> Row:
    """`row` with only its first `num_tokens` tokens; the rest becomes padding."""
    assert 0 < num_tokens <= row.num_tokens, "a row can only be cut within its real tokens"
    ids, flags = row.ids.copy(), row.flags.copy()
    ids[num_tokens:] = pad_id
    flags[num_tokens:] = PADDING
    if num_tokens < len(flags):
        flags[num_tokens] |= START
    return Row(ids, flags, num_tokens)
