"""Filter: documents within a date range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import ClassVar

from cpt_residual.config.filters import DateRange
from cpt_residual.data.documents.problems import Problems
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter

# Python reads more than this (week dates, "20241201" and, worse, long numbers).
_WRITTEN = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?( ?([+-]\d{2}(:?\d{2})?|Z|UTC))?)?",
    re.ASCII,
)


class DateRangeFilter(Filter):
    """Keeps the order and the text. With `unreadable=fail` all records without a date are named in
    one error at the end; their documents are dropped until then."""

    name: ClassVar[str] = "date"
    reasons: ClassVar[tuple[str, ...]] = ("before", "after", "no_readable_date")

    def __init__(self, settings: DateRange) -> None:
        self._settings = settings
        self._problems = Problems(
            f"date filter: some records have no readable date in the field '{settings.field}'",
            "A date is YYYY-MM-DD, alone or with a time. Name another `field`, or drop and count "
            "these records with `unreadable: drop`.",
        )

    def take(self, record: Record) -> Record | Dropped:
        day = day_of(record.date)
        if day is None:
            if self._settings.unreadable == "fail":
                self._problems.add(f"{record.place}: {_shown(record.date)}")
            return Dropped("no_readable_date")
        if self._settings.not_before is not None and day < self._settings.not_before:
            return Dropped("before")
        if self._settings.not_after is not None and day > self._settings.not_after:
            return Dropped("after")
        return record

    def finish(self) -> None:
        self._problems.raise_if_any()

    def facts(self) -> Mapping[str, Fact]:
        settings = self._settings.model_dump(mode="json", exclude_none=True)
        return {**settings, "time_zone": "UTC"}


def day_of(raw: str | None) -> date | None:
    """The day (UTC) of an ISO date or timestamp; None where `raw` is no such thing."""
    written = (raw or "").strip()
    if not _WRITTEN.fullmatch(written):
        return None
    written = written.replace(",", ".").replace("UTC", "Z")
    written = f"{written[:11]}{written[11:].replace(' ', '')}"
    try:
        moment = datetime.fromisoformat(written)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):  # month 13; the year 1 west of Greenwich
        return None
    return moment.date()


def _shown(raw: str | None) -> str:
    return "no date" if raw is None else f"'{raw[:40]}'"
