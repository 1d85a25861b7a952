"""Filter: exact deduplication; the first copy stays."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from typing import ClassVar

from cpt_residual.config.filters import ExactDedup
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter
from cpt_residual.data.filters.words import folded_words

_DIGEST_BYTES = 16


class ExactDedupFilter(Filter):
    """Which texts remain does not depend on the order of the documents, but for which of several
    copies it is. Memory: a digest of 16 bytes per document kept, some 200 bytes with the set that
    holds it; with 1e9 documents two different ones share a digest with probability 1e-21."""

    name: ClassVar[str] = "exact_dedup"
    reasons: ClassVar[tuple[str, ...]] = ("copy",)

    def __init__(self, settings: ExactDedup) -> None:
        self._settings = settings
        self._seen: set[bytes] = set()

    def take(self, record: Record) -> Record | Dropped:
        compared = self._compared(record.text).encode("utf-8")
        digest = hashlib.blake2b(compared, digest_size=_DIGEST_BYTES).digest()
        if digest in self._seen:
            return Dropped("copy")
        self._seen.add(digest)
        return record

    def _compared(self, text: str) -> str:
        """What of a text is compared; one without any word (`---`) is compared as it is."""
        if self._settings.compare == "words":
            words = " ".join(folded_words(text))
            if words:
                return words
        return " ".join(unicodedata.normalize("NFC", text).split())

    def facts(self) -> Mapping[str, Fact]:
        return {**self._settings.model_dump(), "digest": "blake2b, 16 bytes"}
