"""Filter: near deduplication by MinHash (Broder 1997) with banded LSH."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar, cast

from cpt_residual.config.filters import NearDedup
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter
from cpt_residual.data.filters.words import folded_words

_RECALL = 0.9


class NearDedupFilter(Filter):
    """Keeps a document unless its signature and that of one kept before agree in `threshold` of
    their places. LSH only finds whom to compare with; it meets a pair at the threshold with a
    probability of at least 0.9 (0.947 with 16 bands of 8, as for the default settings; above
    0.99 for pairs of similarity 0.85).

    The same documents in the same order give the same result in every process. Which documents
    remain depends on their order: the first is kept. What remains would all remain again.

    Memory: 4 bytes per place of the signature, some 100 bytes per band and 350 bytes besides for
    each document kept: 2.5 kB by default. About 3,000 documents of 2,000 characters a second.
    """

    name: ClassVar[str] = "near_dedup"
    reasons: ClassVar[tuple[str, ...]] = ("near_copy",)

    def __init__(self, settings: NearDedup) -> None:
        self._settings = settings
        self._num_bands = num_bands_for(settings.threshold, settings.num_perm)
        self._rensa = cast("Any", importlib.import_module("rensa"))
        self._kept: Any = self._rensa.RMinHashDeduplicator(
            threshold=settings.threshold,
            num_perm=settings.num_perm,
            use_lsh=True,
            num_bands=self._num_bands,
            seed=settings.seed,
        )
        self._num_kept = 0

    def take(self, record: Record) -> Record | Dropped:
        signature = self._rensa.RMinHash(self._settings.num_perm, self._settings.seed)
        signature.update(shingles_of(record.text, self._settings.shingle_words))
        if not self._kept.add(str(self._num_kept), signature):
            return Dropped("near_copy")
        self._num_kept += 1
        return record

    def facts(self) -> Mapping[str, Fact]:
        return {
            **self._settings.model_dump(),
            "num_bands": self._num_bands,
            "rensa": version("rensa"),
        }


def shingles_of(text: str, num_words: int) -> list[str]:
    """Every run of `num_words` words; a shorter text is one shingle, as is one without words."""
    words = folded_words(text)
    if len(words) < num_words:
        return [" ".join(words) or text.strip()]
    return [" ".join(words[at : at + num_words]) for at in range(len(words) - num_words + 1)]


def num_bands_for(threshold: float, num_perm: int) -> int:
    """The fewest bands, of equal size, whose chance to meet a pair of similarity `threshold`,
    1 - (1 - threshold^rows)^bands, is at least 0.9."""
    for num_bands in range(1, num_perm):
        rows, rest = divmod(num_perm, num_bands)
        if rest == 0 and 1 - (1 - threshold**rows) ** num_bands >= _RECALL:
            return num_bands
    return num_perm
