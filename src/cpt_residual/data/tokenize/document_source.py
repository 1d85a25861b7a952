"""One source of a pack: a file of documents, how its lines are read, encoded and packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from cpt_residual.data.documents.parsing import (
    Messages,
    chat_characters,
    parse_messages,
    parse_text,
)
from cpt_residual.modeling.encoded import EncodedDocuments

Document = TypeVar("Document")

TextPacking = Literal["concat_chunk", "best_fit"]
Packing = Literal["concat_chunk", "best_fit", "whole"]


@dataclass(frozen=True)
class DocumentSource(Generic[Document]):
    """One source of a pack. Make it with `text_source` or `chat_source`.

    `encode` turns documents into ids one by one: a document's ids must not depend on the others
    in the call. It pickles, for processes that help. `max_epochs`: how often the documents may be
    read (None: as the plan's `repeat` says).
    """

    name: str
    format: Literal["text", "chat"]
    documents: Path
    share: float
    packing: Packing
    parse: Callable[[bytes, str], Document]
    characters: Callable[[Document], int]
    encode: Callable[[Sequence[Document]], EncodedDocuments]
    max_epochs: int | None


def text_source(
    name: str,
    documents: Path,
    *,
    share: float,
    encode: Callable[[Sequence[str]], EncodedDocuments],
    packing: TextPacking = "concat_chunk",
    max_epochs: int | None = None,
) -> DocumentSource[str]:
    """Lines of `{"text": str}`."""
    return DocumentSource(
        name=name,
        format="text",
        documents=documents,
        share=share,
        packing=packing,
        parse=parse_text,
        characters=len,
        encode=encode,
        max_epochs=max_epochs,
    )


def chat_source(
    name: str,
    documents: Path,
    *,
    share: float,
    encode: Callable[[Sequence[Messages]], EncodedDocuments],
    max_epochs: int | None = None,
) -> DocumentSource[Messages]:
    """Lines of `{"messages": [...]}`, kept whole."""
    return DocumentSource(
        name=name,
        format="chat",
        documents=documents,
        share=share,
        packing="whole",
        parse=parse_messages,
        characters=chat_characters,
        encode=encode,
        max_epochs=max_epochs,
    )


Source = DocumentSource[str] | DocumentSource[Messages]
