"""The rows of one source: its documents in seeded order, encoded, packed, and booked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from cpt_residual.data.documents import Messages, chat_characters, parse_messages, parse_text
from cpt_residual.data.index import LineIndex, seeded_order
from cpt_residual.data.pack_format import SourceLedger
from cpt_residual.data.problems import MAX_PROBLEMS, BadDocumentError, Problems
from cpt_residual.data.rows import (
    CONTINUATION,
    LOSS,
    PADDING,
    START,
    ConcatChunk,
    Encoded,
    Row,
    RowPacker,
    WholeDocuments,
)
from cpt_residual.errors import CorpusError

__all__ = ["DocumentSource", "PackPlan", "Source", "SourceRows", "chat_source", "text_source"]

Document = TypeVar("Document")

_BATCH_CHARACTERS = 4_000_000

_COUNTED = (
    "rows",
    "tokens",
    "padding",
    "loss_tokens",
    "documents",
    "continuations",
    "bos_tokens",
    "eos_tokens",
)


@dataclass(frozen=True)
class PackPlan:
    """What is asked for. Ids come from the tokenizer whose `token_map_hash` is given."""

    sequence_length: int
    token_budget: int
    repeat: bool
    seed: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    tokenizer_map_hash: str


@dataclass(frozen=True)
class DocumentSource(Generic[Document]):
    """One source of a pack. Make it with `text_source` or `chat_source`.

    `encode` turns documents into (ids, loss) one by one: a document's ids must not depend on the
    others in the call. `whole`: documents are never split over rows.
    """

    name: str
    format: str
    documents: Path
    share: float
    whole: bool
    parse: Callable[[bytes, str], Document]
    characters: Callable[[Document], int]
    encode: Callable[[Sequence[Document]], Sequence[Encoded]]

    def rows(
        self, plan: PackPlan, index: LineIndex, *, batch_documents: int
    ) -> SourceRows[Document]:
        """The rows of this source, made when asked for. `index` is over `documents`."""
        return SourceRows(self, plan, index, batch_documents)


def text_source(
    name: str,
    documents: Path,
    *,
    share: float,
    encode: Callable[[Sequence[str]], Sequence[Encoded]],
) -> DocumentSource[str]:
    """Lines of `{"text": str}`, concatenated and chunked."""
    return DocumentSource(
        name=name,
        format="text",
        documents=documents,
        share=share,
        whole=False,
        parse=parse_text,
        characters=len,
        encode=encode,
    )


def chat_source(
    name: str,
    documents: Path,
    *,
    share: float,
    encode: Callable[[Sequence[Messages]], Sequence[Encoded]],
) -> DocumentSource[Messages]:
    """Lines of `{"messages": [...]}`, kept whole."""
    return DocumentSource(
        name=name,
        format="chat",
        documents=documents,
        share=share,
        whole=True,
        parse=parse_messages,
        characters=chat_characters,
        encode=encode,
    )


Source = DocumentSource[str] | DocumentSource[Messages]


class SourceRows(Generic[Document]):
    """The rows of one source, and its counts."""

    def __init__(
        self,
        source: DocumentSource[Document],
        plan: PackPlan,
        index: LineIndex,
        batch_documents: int,
    ) -> None:
        if len(index) == 0:
            raise CorpusError(
                f"source {source.name}: {index.path.name} holds no document",
                remedy="Take it out of the pack's `sources`, or give its corpus documents.",
            )
        self.source = source
        self._plan = plan
        self._index = index
        self._batch_documents = batch_documents
        packer = WholeDocuments if source.whole else ConcatChunk
        self._packer: RowPacker = packer(plan.sequence_length, pad_id=plan.pad_id)
        self._documents = self._encoded()
        self.num_cut = 0
        self.num_tokens_read = 0
        self._documents_read = self._characters_read = self._passes = 0
        self._counts = np.zeros(len(_COUNTED), dtype=np.int64)

    @property
    def num_documents(self) -> int:
        """Documents in one pass."""
        return len(self._index)

    def next_row(self) -> Row | None:
        """The next row, or None when the source has no more tokens."""
        while (row := self._packer.next_row()) is None:
            entry = next(self._documents, None)
            if entry is None:
                self._packer.finish()
                return self._packer.next_row()
            document, num_characters = entry
            self._packer.add(document)
            self._documents_read += 1
            self._characters_read += num_characters
            self.num_tokens_read += len(document[0])
        return row

    def count(self, row: Row) -> None:
        """Book a row as it is published."""
        flags = row.flags
        real = (flags & PADDING) == 0
        starts = real & ((flags & START) != 0)
        continued = starts & ((flags & CONTINUATION) != 0)
        loss = (flags & LOSS) != 0
        bos_id = -1 if self._plan.bos_id is None else self._plan.bos_id
        is_bos = starts & (row.ids.astype(np.int64) == bos_id)
        is_eos = real & (row.ids == self._plan.eos_id)
        counted = (real, ~real, loss, starts & ~continued, continued, is_bos, is_eos)
        self._counts += [1, *(int(np.count_nonzero(part)) for part in counted)]

    def ledger(self) -> SourceLedger:
        """The books of this source; they balance, or the program is wrong."""
        counts = dict(zip(_COUNTED, (int(count) for count in self._counts), strict=True))
        left_over = self._packer.pending_tokens
        assert self.num_tokens_read == counts["tokens"] + self.num_cut + left_over, (
            "tokens got lost"
        )
        return SourceLedger(
            corpus=self.source.name,
            format=self.source.format,
            share=self.source.share,
            documents_available=len(self._index),
            documents_read=self._documents_read,
            characters_read=self._characters_read,
            tokens_read=self.num_tokens_read,
            passes=self._passes,
            masked_tokens=counts["tokens"] - counts["loss_tokens"],
            tokens_cut=self.num_cut,
            tokens_left_over=left_over,
            **counts,
        )

    def _encoded(self) -> Iterator[tuple[Encoded, int]]:
        """Encoded documents with their characters: one pass, or endless passes in new orders."""
        while self._passes == 0 or self._plan.repeat:
            order = seeded_order(
                len(self._index), seed=self._plan.seed, name=self.source.name, epoch=self._passes
            )
            self._passes += 1
            for numbers, documents in self._batches(order.tolist()):
                encoded = self.source.encode(documents)
                for number, document, one in zip(numbers, documents, encoded, strict=True):
                    if self.source.whole and len(one[0]) > self._plan.sequence_length:
                        raise self._too_long(number, len(one[0]))
                    yield one, self.source.characters(document)

    def _batches(self, order: Sequence[int]) -> Iterator[tuple[list[int], list[Document]]]:
        """Parsed documents in `order`, bounded in number and in characters."""
        problems = Problems(
            f"source {self.source.name}: some documents cannot be used", "Nothing was packed."
        )
        numbers: list[int] = []
        documents: list[Document] = []
        num_characters = 0
        for number in order:
            try:
                document = self.source.parse(self._index.line(number), self._index.place(number))
            except BadDocumentError as problem:
                problems.add(str(problem))
                continue
            numbers.append(number)
            documents.append(document)
            num_characters += self.source.characters(document)
            if len(documents) >= self._batch_documents or num_characters >= _BATCH_CHARACTERS:
                if not problems:
                    yield numbers, documents
                numbers, documents, num_characters = [], [], 0
        problems.raise_if_any()
        if documents:
            yield numbers, documents

    def _too_long(self, first: int, num_tokens: int) -> CorpusError:
        """The error for chat documents that no row can hold; counts them all."""
        length = self._plan.sequence_length
        found = {first: num_tokens}
        for numbers, documents in self._batches(range(len(self._index))):
            for number, (ids, _) in zip(numbers, self.source.encode(documents), strict=True):
                if len(ids) > length:
                    found[number] = len(ids)
        longest_first = sorted(found, key=lambda number: (-found[number], number))
        listed = longest_first[:MAX_PROBLEMS]
        return CorpusError(
            f"source {self.source.name}: {len(found)} of {len(self._index)} chat documents are"
            f" longer than a row of {length} tokens",
            problems=[f"{self._index.place(number)}: {found[number]} tokens" for number in listed],
            remedy="A dialogue is never split or shortened. Set sequence_length to at least"
            f" {max(found.values())}, or take these documents out of the corpus.",
        )
