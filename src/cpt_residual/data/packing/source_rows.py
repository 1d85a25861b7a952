"""Packed rows of one source: documents in seeded order, encoded, packed and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cpt_residual.data.documents.line_index import LineIndex
from cpt_residual.data.documents.problems import MAX_PROBLEMS, BadDocumentError, Problems
from cpt_residual.data.packing.pack_ledger import AddedTokenUse, SourceLedger
from cpt_residual.data.packing.row_counts import RowCounts
from cpt_residual.data.packing.rows import (
    BestFit,
    ConcatChunk,
    DocumentTooLongError,
    Row,
    RowPacker,
    WholeDocuments,
)
from cpt_residual.data.tokenize.document_source import DocumentSource, Packing
from cpt_residual.data.tokenize.encoded_blocks import Blocks
from cpt_residual.data.tokenize.token_cache import TokenBlock
from cpt_residual.errors import CorpusError

_ENCODED_AT_ONCE = 256

_PACKERS: dict[Packing, type[ConcatChunk | BestFit]] = {
    "concat_chunk": ConcatChunk,
    "best_fit": BestFit,
    "whole": WholeDocuments,
}


@dataclass(frozen=True)
class RowShape:
    """Rows of `length` tokens, filled up with `pad_id`."""

    length: int
    pad_id: int


@dataclass
class _Read:
    """Documents, characters, tokens and uses of added tokens that were taken into rows."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    uses: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def plus(self, block: TokenBlock, num_documents: int) -> _Read:
        """With the first documents of a block."""
        return _Read(
            self.documents + num_documents,
            self.characters + int(block.characters[:num_documents].sum()),
            self.tokens + int(block.documents.lengths[:num_documents].sum()),
            self._uses_with(block, num_documents),
        )

    def _uses_with(self, block: TokenBlock, num_documents: int) -> Mapping[int, tuple[int, int]]:
        """By id of an added token: in how many documents, and how often."""
        uses = block.documents.uses
        found = dict(self.uses)
        for _, token_id, count in uses[uses[:, 0] < num_documents].tolist():
            documents, times = found.get(token_id, (0, 0))
            found[token_id] = documents + 1, times + count
        return found


class SourceRows:
    """The rows of one source, and its books."""

    def __init__(
        self, source: DocumentSource, index: LineIndex, blocks: Blocks, shape: RowShape
    ) -> None:
        self.source = source
        self._index = index
        self._blocks = blocks
        self._shape = shape
        packer: RowPacker = _PACKERS[source.packing](shape.length, pad_id=shape.pad_id)
        self._packer = packer
        self._before = _Read()  # all blocks but the last
        self._last: TokenBlock | None = None
        self._num_given = 0  # documents of this epoch that the packer has
        self._has_ended = False
        self.num_cut = 0

    @property
    def num_documents(self) -> int:
        """Documents in one epoch."""
        return len(self._index)

    @property
    def num_epochs(self) -> int:
        """Epochs begun."""
        return self._blocks.num_epochs

    def next_row(self) -> Row | None:
        """The next row, or None when the source has no more tokens. The row's arrays may be parts
        of larger ones."""
        try:
            while (row := self._packer.next_row()) is None and not self._has_ended:
                if self._num_given == len(self._index):
                    self._num_given = 0
                    self._packer.end_epoch()
                else:
                    self._take_block()
        except DocumentTooLongError:
            raise self._too_long() from None
        return row

    def num_tokens_read(self) -> int:
        """Tokens of all documents taken."""
        return self._read().tokens

    def ledger(self, counts: RowCounts) -> SourceLedger:
        """The books of this source; they balance, or the program is wrong."""
        read, left_over = self._read(), self._packer.pending_tokens
        assert read.tokens == counts.tokens + self.num_cut + left_over, "tokens got lost"
        return SourceLedger(
            corpus=self.source.name,
            format=self.source.format,
            packing=self.source.packing,
            share=self.source.share,
            max_epochs=self.source.max_epochs,
            documents_available=len(self._index),
            documents_read=read.documents,
            characters_read=read.characters,
            tokens_read=read.tokens,
            epochs=self.num_epochs,
            masked_tokens=counts.tokens - counts.loss_tokens,
            tokens_cut=self.num_cut,
            tokens_left_over=left_over,
            added_tokens=tuple(
                AddedTokenUse(id=token_id, documents=documents, times=times)
                for token_id, (documents, times) in sorted(read.uses.items())
            ),
            **counts.as_dict(),
        )

    def _read(self) -> _Read:
        if self._last is None:
            return self._before
        return self._before.plus(self._last, self._packer.num_documents - self._before.documents)

    def _take_block(self) -> None:
        block = self._blocks.next_block()
        if not self._blocks.is_usable:
            self._raise_bad_documents()
        if block is None:
            self._packer.finish()
            self._has_ended = True
            return
        if self._last is not None:
            self._before = self._before.plus(self._last, len(self._last.documents))
        self._last = block
        self._num_given += len(block.documents)
        self._packer.add(block.documents)

    def _raise_bad_documents(self) -> None:
        """The error that names all documents which cannot be used."""
        problems = Problems(
            f"source {self.source.name}: some documents cannot be used", "Nothing was packed."
        )
        for number in range(len(self._index)):
            try:
                self.source.parse(self._index.line(number), self._index.place(number))
            except BadDocumentError as problem:
                problems.add(str(problem))
        problems.raise_if_any()
        raise AssertionError("a document could not be used, and now all can")

    def _too_long(self) -> CorpusError:
        """The error for chat documents that no row can hold; counts them all."""
        length = self._shape.length
        found: dict[int, int] = {}
        for first in range(0, len(self._index), _ENCODED_AT_ONCE):
            numbers = range(first, min(first + _ENCODED_AT_ONCE, len(self._index)))
            documents = [
                self.source.parse(self._index.line(number), self._index.place(number))
                for number in numbers
            ]
            lengths = self.source.encode(documents).lengths.tolist()
            found |= {n: size for n, size in zip(numbers, lengths, strict=True) if size > length}
        longest_first = sorted(found, key=lambda number: (-found[number], number))
        listed = longest_first[:MAX_PROBLEMS]
        return CorpusError(
            f"source {self.source.name}: {len(found)} of {len(self._index)} chat documents are"
            f" longer than a row of {length} tokens",
            problems=[f"{self._index.place(number)}: {found[number]} tokens" for number in listed],
            remedy="A dialogue is never split or shortened. Set sequence_length to at least"
            f" {max(found.values())}, or take these documents out of the corpus.",
        )
