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

from cpt_residual.modeling.encoded import EncodedDocuments, Ids, Lengths

Flags = npt.NDArray[np.uint8]

START = 1
"""Bit 0: first token of a segment (a document, a document's continuation, or the padding tail)."""
LOSS = 2
"""Bit 1: the label of this token bears loss. Never set together with START."""
PADDING = 4
"""Bit 2: not a token of any document."""
CONTINUATION = 8
"""Bit 3, only with START: the segment continues the document of an earlier row. In column 0 with
`ConcatChunk`, anywhere with `BestFit`."""


@dataclass(frozen=True)
class Row:
    """One packed row: ids_L, flags_L and how many of its L tokens are real (not padding)."""

    ids: Ids
    flags: Flags
    num_tokens: int


class DocumentTooLongError(ValueError):
    """A document that must stay whole is longer than a row."""


class RowPacker(Protocol):
    """Takes documents in order and gives rows. What it gives does not depend on how the documents
    are divided into calls of `add`."""

    @property
    def num_documents(self) -> int:
        """Documents taken so far: no more than the rows that were asked for needed."""
        ...

    @property
    def pending_tokens(self) -> int:
        """Tokens of the documents taken that are in no row given yet."""
        ...

    def add(self, documents: EncodedDocuments) -> None:
        """Here are the next documents; all before have been used up (`next_row` gave None)."""
        ...

    def end_epoch(self) -> None:
        """The next document, if any, is from another epoch of the source (`next_row` gave None).
        May make padded rows of what is pending."""
        ...

    def finish(self) -> None:
        """No document follows (`next_row` gave None): make padded rows of what is pending."""
        ...

    def next_row(self) -> Row | None:
        """The next finished row, or None when more documents are needed first. May raise
        DocumentTooLongError."""
        ...


def _flags_of(documents: EncodedDocuments) -> Flags:
    """flags_N of documents that each begin a segment."""
    if documents.loss is None:
        flags = np.full(len(documents.ids), LOSS, dtype=np.uint8)
    else:
        flags = np.where(documents.loss, np.uint8(LOSS), np.uint8(0))
    flags[documents.starts] = START
    return flags


class ConcatChunk:
    """Documents end to end, cut every L tokens; a long document continues in the next row.

    No padding but in the very last row. The price: the token after a cut has no label and does
    not see what came before it (at most one token in L, counted as masked).
    """

    def __init__(self, length: int, *, pad_id: int) -> None:
        self._length = length
        self._pad_id = pad_id
        self._ids: Ids = np.empty(0, dtype=np.uint32)
        self._flags: Flags = np.empty(0, dtype=np.uint8)
        self._starts: Lengths = np.empty(0, dtype=np.int64)  # of documents, in `_ids`
        self._position = 0  # tokens of `_ids` that were given
        self._documents_before = 0  # those that began before `_ids`
        self._is_finished = False

    @property
    def num_documents(self) -> int:
        return self._documents_before + self._begun()

    @property
    def pending_tokens(self) -> int:
        begun = self._begun()
        end = self._starts[begun] if begun < len(self._starts) else len(self._ids)
        return int(end) - self._position

    def add(self, documents: EncodedDocuments) -> None:
        begun, rest = self._begun(), len(self._ids) - self._position
        self._documents_before += begun
        self._starts = np.concatenate(
            [self._starts[begun:] - self._position, documents.starts + rest]
        )
        self._ids = np.concatenate([self._ids[self._position :], documents.ids])
        self._flags = np.concatenate([self._flags[self._position :], _flags_of(documents)])
        self._position = 0

    def end_epoch(self) -> None:
        """The next epoch goes on in the same row."""

    def finish(self) -> None:
        self._is_finished = True

    def next_row(self) -> Row | None:
        first, last = self._position, self._position + self._length
        if last > len(self._ids):
            return self._last_row() if self._is_finished else None
        self._position = last
        flags = self._flags[first:last]
        _begin_segment(flags, 0)
        return Row(self._ids[first:last], flags, self._length)

    def _last_row(self) -> Row | None:
        ids, flags = self._ids[self._position :], self._flags[self._position :]
        if not len(ids):
            return None
        self._position = len(self._ids)
        row = _Assembly(self._length, self._pad_id)
        _begin_segment(flags, 0)
        row.append(ids, flags)
        return row.row()

    def _begun(self) -> int:
        """Documents of `_starts` that begin in rows already given."""
        return int(np.searchsorted(self._starts, self._position, side="left"))


def _begin_segment(flags: Flags, column: int) -> None:
    """Whatever is at `column` begins a segment: a document, or the continuation of one."""
    if not flags[column] & START:
        flags[column] = START | CONTINUATION


class _Assembly:
    """A row under construction."""

    def __init__(self, length: int, pad_id: int) -> None:
        self.ids: Ids = np.full(length, pad_id, dtype=np.uint32)
        self.flags: Flags = np.full(length, PADDING, dtype=np.uint8)
        self.filled = 0

    @property
    def room(self) -> int:
        return len(self.ids) - self.filled

    def append(self, ids: Ids, flags: Flags) -> None:
        """Add one or more segments."""
        first, last = self.filled, self.filled + len(ids)
        self.ids[first:last] = ids
        self.flags[first:last] = flags
        self.filled = last

    def row(self) -> Row:
        if self.room:
            self.flags[self.filled] |= START
        return Row(self.ids, self.flags, self.filled)


class BestFit:
    """Best fit over a bounded number of open rows; documents stay whole where they fit.

    A document goes into the open row with the least room that still holds it. When it fits
    nowhere and all rows are in use, the fullest row is given out first. A document longer than a
    row fills rows of its own, and its rest is placed like a document. The price is padding.

    All rows are given out at the end of an epoch of the source: none holds documents of two, so
    every document comes k times before any comes k + 1 times.
    """

    splits = True

    def __init__(self, length: int, *, pad_id: int, num_open_rows: int = 64) -> None:
        self._length = length
        self._pad_id = pad_id
        self._num_open_rows = num_open_rows
        self._num_opened = 0
        self._open: dict[int, _Assembly] = {}  # by number, oldest first
        self._rooms: list[tuple[int, int]] = []  # (room, number) of the open rows, sorted
        self._ready: deque[Row] = deque()
        self._given: deque[int] = deque()  # lengths of the documents that are not taken yet
        self._ids: Ids = np.empty(0, dtype=np.uint32)
        self._flags: Flags = np.empty(0, dtype=np.uint8)
        self._position = 0
        self._num_documents = 0
        self._was_full = False  # all rows were in use, and one more was needed, in this epoch

    @property
    def num_documents(self) -> int:
        return self._num_documents

    @property
    def pending_tokens(self) -> int:
        open_tokens = sum(row.filled for row in self._open.values())
        return open_tokens + sum(row.num_tokens for row in self._ready)

    def add(self, documents: EncodedDocuments) -> None:
        assert not self._given, "documents were left"
        self._given.extend(documents.lengths.tolist())
        self._ids, self._flags, self._position = documents.ids, _flags_of(documents), 0

    def end_epoch(self) -> None:
        self.finish()

    def finish(self) -> None:
        self._rooms.clear()
        for number in list(self._open):
            self._close(number)

    def next_row(self) -> Row | None:
        while not self._ready and self._given:
            num_tokens = self._given[0]
            if num_tokens > self._length and not self.splits:
                raise DocumentTooLongError(num_tokens)
            self._take(num_tokens)
        return self._ready.popleft() if self._ready else None

    def _take(self, num_tokens: int) -> None:
        """Use the next document, of `num_tokens` tokens."""
        self._given.popleft()
        self._num_documents += 1
        end = self._position + num_tokens
        while end - self._position > self._length:
            self._ready.append(Row(*self._segment(self._length), self._length))
        ids, flags = self._segment(end - self._position)
        number = self._row_for(len(ids))
        row = self._open[number]
        row.append(ids, flags)
        if row.room:
            insort(self._rooms, (row.room, number))
        else:
            self._close(number)

    def _segment(self, num_tokens: int) -> tuple[Ids, Flags]:
        """The next tokens of the document at hand."""
        first, self._position = self._position, self._position + num_tokens
        ids, flags = self._ids[first : self._position], self._flags[first : self._position]
        _begin_segment(flags, 0)
        return ids, flags

    def _row_for(self, num_tokens: int) -> int:
        """The number of the open row that takes a segment; it is out of `_rooms` until filled."""
        best = bisect_left(self._rooms, (num_tokens, 0))
        if best < len(self._rooms):
            return self._rooms.pop(best)[1]
        if len(self._rooms) == self._num_open_rows:
            self._was_full = True
            self._close(self._rooms.pop(0)[1])
        number = self._num_opened
        self._num_opened += 1
        self._open[number] = _Assembly(self._length, self._pad_id)
        return number

    def _close(self, number: int) -> None:
        self._ready.append(self._open.pop(number).row())


class WholeDocuments(BestFit):
    """Best fit that never splits a document: one longer than a row is a DocumentTooLongError.

    At the end of an epoch rows stay open for documents of the next one, but not where a whole epoch
    fits into the open rows: some of its documents would come several times before others at all.
    """

    splits = False

    def end_epoch(self) -> None:
        if not self._was_full:
            self.finish()
        self._was_full = False


def cut_row(row: Row, num_tokens: int, *, pad_id: int) -> Row:
    """`row` with only its first `num_tokens` tokens; the rest becomes padding."""
    assert 0 < num_tokens <= row.num_tokens, "a row can only be cut within its real tokens"
    ids, flags = row.ids.copy(), row.flags.copy()
    ids[num_tokens:] = pad_id
    flags[num_tokens:] = PADDING
    if num_tokens < len(flags):
        flags[num_tokens] |= START
    return Row(ids, flags, num_tokens)
