"""Filter: minimum and maximum document length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cpt_residual.config.filters import Length
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter


class LengthFilter(Filter):
    """Decides by the number of Unicode characters alone; nothing is cut."""

    name: ClassVar[str] = "length"
    reasons: ClassVar[tuple[str, ...]] = ("too_short", "too_long")

    def __init__(self, settings: Length) -> None:
        self._settings = settings

    def take(self, record: Record) -> Record | Dropped:
        least, most = self._settings.min_characters, self._settings.max_characters
        if least is not None and len(record.text) < least:
            return Dropped("too_short")
        if most is not None and len(record.text) > most:
            return Dropped("too_long")
        return record

    def facts(self) -> Mapping[str, Fact]:
        return self._settings.model_dump(exclude_none=True)
