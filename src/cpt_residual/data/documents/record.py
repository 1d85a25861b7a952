"""A document record between reader, filters and corpus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """A document: non-blank text with a UTF-8 form, and where it comes from.

    place: for messages, `file:line`, `file row N` or `repo[split] row N` (counted from 1).
    date: the raw value of the date field as text; None when no date field is asked for.
    """

    text: str
    place: str
    date: str | None = None
