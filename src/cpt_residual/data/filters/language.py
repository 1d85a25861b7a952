"""Filter: language identification by py3langid (Lui and Baldwin 2012)."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar, cast

from cpt_residual.config.filters import Language
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter

_MOST_NAMED = 20


def detector() -> Any:
    """A fresh identifier with the model that comes with the library (no network). It compares all
    its languages and gives probabilities; the same text gets the same answer."""
    module = cast("Any", importlib.import_module("py3langid.langid"))
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


class LanguageFilter(Filter):
    """`counts`: documents by the language found, the most frequent by name (`zxx`: no language,
    such as identifiers or markup). The model takes 90 MB; about 2,000 documents a second. Another
    processor may round the last digits of a probability in another way."""

    name: ClassVar[str] = "language"
    reasons: ClassVar[tuple[str, ...]] = ("other_language", "unsure")

    def __init__(self, settings: Language) -> None:
        self._settings = settings
        self._keep = frozenset(settings.keep)
        self._detector = detector()
        self._found: Counter[str] = Counter()

    def take(self, record: Record) -> Record | Dropped:
        # One word a line is no language to the detector; where lines end says nothing about it.
        beginning = " ".join(record.text[: self._settings.first_characters].split())
        language, probability = cast("tuple[str, float]", self._detector.classify(beginning))
        self._found[language] += 1
        if language not in self._keep:
            return Dropped("other_language")
        if probability < self._settings.min_probability:
            return Dropped("unsure")
        return record

    def counts(self) -> Mapping[str, int]:
        by_number = sorted(self._found.items(), key=lambda item: (-item[1], item[0]))
        named = {f"found_{language}": number for language, number in by_number[:_MOST_NAMED]}
        rest = sum(number for _, number in by_number[_MOST_NAMED:])
        return {**named, "found_others": rest} if rest else named

    def facts(self) -> Mapping[str, Fact]:
        return {
            **self._settings.model_dump(exclude={"keep"}),
            "keep": ", ".join(self._settings.keep),
            "py3langid": version("py3langid"),
        }
