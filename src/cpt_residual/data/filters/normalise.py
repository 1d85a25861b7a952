"""Filter: normalise line ends, control characters and Unicode form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from cpt_residual.config.filters import Normalise
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85]")
# All but tab, LF and the line ends above.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

_COUNTS = (
    "documents_changed",
    "line_ends_replaced",
    "control_characters_removed",
    "documents_recomposed",
)


class NormaliseFilter(Filter):
    """Doing it twice changes nothing more. `counts`: documents that changed, and of what."""

    name: ClassVar[str] = "normalise"
    reasons: ClassVar[tuple[str, ...]] = ("blank",)

    def __init__(self, settings: Normalise) -> None:
        self._settings = settings
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    def take(self, record: Record) -> Record | Dropped:
        text = self._rewritten(record.text)
        if not text.strip():
            return Dropped("blank")
        if text == record.text:
            return record
        self._counts["documents_changed"] += 1
        return replace(record, text=text)

    def _rewritten(self, text: str) -> str:
        """Letters and marks come last: a control character may have stood between them."""
        if self._settings.line_ends:
            text, number = _LINE_ENDS.subn("\n", text)
            self._counts["line_ends_replaced"] += number
        if self._settings.control_characters:
            text, number = _CONTROL.subn("", text)
            self._counts["control_characters_removed"] += number
        form = self._settings.unicode_form
        if form != "keep" and not unicodedata.is_normalized(form, text):
            text = unicodedata.normalize(form, text)
            self._counts["documents_recomposed"] += 1
        return text

    def counts(self) -> Mapping[str, int]:
        return self._counts

    def facts(self) -> Mapping[str, Fact]:
        return {**self._settings.model_dump(), "unicode": unicodedata.unidata_version}
