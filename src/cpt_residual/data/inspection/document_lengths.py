"""How long the documents of a pack are: the parts of each joined again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from cpt_residual.data.inspection.chunks import Chunk, Counts, Mask
from cpt_residual.data.inspection.lengths import Lengths
from cpt_residual.data.pack_ledger import PackLedger

_WHOLE = "whole"  # the packing that never splits a document


class DocumentLengths:
    """Takes chunks in order. Lengths are in tokens as packed: BOS and EOS count.

    A document that is split ends with the part that ends with EOS. Best fit keeps the last parts
    of several documents open at once, and they are given to these in order: the sum is exact, one
    such length right to a row. unfinished: documents whose last part is not in the pack.
    """

    def __init__(self, ledger: PackLedger) -> None:
        self.by_source = tuple(Lengths() for _ in ledger.sources)
        self._eos_id = ledger.eos_id
        self._whole = [source.packing == _WHOLE for source in ledger.sources]
        self._split = [_SplitDocuments(lengths) for lengths in self.by_source]

    def add(self, chunk: Chunk) -> None:
        """The next rows."""
        begins = chunk.start.copy()
        begins[:, 0] = True
        places = np.flatnonzero(begins)
        ends = np.append(places[1:], begins.size)
        lengths = ends - places
        of_segment = chunk.sources[places // begins.shape[1]]
        real = ~chunk.padding.ravel()[places]
        continued = chunk.continuation.ravel()[places]
        ended = chunk.ids.ravel()[ends - 1] == self._eos_id
        complete = real & ~continued & ended
        for number, found in enumerate(self.by_source):
            mine = real & (of_segment == number)
            if self._whole[number]:
                found.add_all(lengths[mine])
                continue
            found.add_all(lengths[mine & complete])
            parts = mine & ~complete
            self._split[number].add(lengths[parts], continued[parts], ended[parts])

    def finish(self) -> int:
        """No rows follow; returns how many documents are unfinished."""
        return sum(split.close() for split in self._split)


class _SplitDocuments:
    """The documents of one source that go on in a later row."""

    def __init__(self, lengths: Lengths) -> None:
        self._lengths = lengths
        self._open: deque[int] = deque()

    def add(self, lengths: Counts, continued: Mask, ended: Mask) -> None:
        """Parts in order; there are no more than two in a row of text."""
        parts = zip(lengths.tolist(), continued.tolist(), ended.tolist(), strict=True)
        for length, continues, ends in parts:
            if not continues or not self._open:
                self._open.append(length)
            elif ends:
                self._lengths.add(self._open.popleft() + length)
            else:
                self._open[-1] += length

    def close(self) -> int:
        """What is still open is counted as it is."""
        left: Sequence[int] = list(self._open)
        for length in left:
            self._lengths.add(length)
        self._open.clear()
        return len(left)
