"""One source of a pack: a file of documents, how its lines are read, encoded and packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpt_residual.data.documents.parsing import (
    Messages,
    chat_characters,
    parse_messages,
    parse_text,
)
from cpt_residual.modeling.encoded import EncodedDocuments

Packing = Literal["concat_chunk", "best_fit", "whole"]


@dataclass(frozen=True)
class DocumentSource:
    """Lines of `{"text": str}`, or with packing `whole` dialogues, `{"messages": [...]}`.

    `encode` turns documents into ids one by one: a document's ids must not depend on the others
    in the call. It pickles, for processes that help. `max_epochs`: how often the documents may be
    read (None: as the plan's `repeat` says).
    """

    name: str
    documents: Path
    share: float
    encode: Callable[[Sequence[Any]], EncodedDocuments]
    packing: Packing = "concat_chunk"
    max_epochs: int | None = None

    @property
    def format(self) -> Literal["text", "chat"]:
        return "chat" if self.packing == "whole" else "text"

    def parse(self, line: bytes, place: str) -> str | Messages:
        """The document of one line; `place` is `file:line`. Raises BadDocumentError."""
        return parse_messages(line, place) if self.packing == "whole" else parse_text(line, place)


def num_characters(document: str | Messages) -> int:
    """Characters of a text, or of all turns of a dialogue."""
    return len(document) if isinstance(document, str) else chat_characters(document)
