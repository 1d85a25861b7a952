"""The reader interface: requested fields, records, and bad-row reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpt_residual.base_model import Frozen
from cpt_residual.config.corpora import BadLines
from cpt_residual.data.documents.parsing import field_of, text_of
from cpt_residual.data.documents.problems import Problems
from cpt_residual.data.documents.record import Record

MAX_FIRST = 10
"""So many of the rows that are left out are kept with their place."""

Unit = Literal["line", "row"]


class FileLedger(Frozen):
    """One file: rows = documents + bad_rows_skipped. kind: how its name ends."""

    kind: str
    sha256: str
    documents: int
    characters: int
    bad_rows_skipped: int


class ReadLedger(Frozen):
    """What was read, before any filter.

    first_bad_rows: where the first rows were that `bad_lines: skip` left out, and why; a file is
    named by its number in `files`, from 1, as the ledger depends on the content of files alone.
    files: empty for a hub data set.
    """

    documents: int
    characters: int
    bad_rows_skipped: int
    first_bad_rows: tuple[str, ...] = ()
    files: tuple[FileLedger, ...] = ()


@dataclass(frozen=True)
class Fields:
    """Names of the fields to read, or paths to them (see `field_of`).

    date: None when no date is asked for.
    """

    text: str
    date: str | None = None

    @property
    def names(self) -> list[str]:
        return [self.text] if self.date in (None, self.text) else [self.text, str(self.date)]


@dataclass(frozen=True)
class SourceFile:
    """A file to read. number: its place among the files of the corpus, from 1."""

    path: Path
    number: int
    suffix: str


class BadRows:
    """Rows that hold no document: an error that lists them (`fail`), or counted (`skip`).

    What makes the rest of a file unreadable is an error either way: where its rows begin is not
    known any more.
    """

    def __init__(self, policy: BadLines, problems: Problems) -> None:
        self._policy, self._problems = policy, problems
        self._shown: list[str] = []
        self.num_skipped = 0
        self.first: list[str] = []

    def row(self, source: SourceFile, number: int, what: str, unit: Unit = "line") -> None:
        """Row `number` of `source` (from 1) holds no document; raises when there are too many."""
        if self._policy == "fail":
            self._problems.add_line(str(source.path), number, what, unit=unit)
            return
        between = ":" if unit == "line" else " row "
        self._skip(
            f"file {source.number} {unit} {number}: {what}",
            f"{source.path}{between}{number}: {what}",
        )

    def document(self, source: SourceFile, what: str, line: int | None = None) -> None:
        """`source` is one document, and that cannot be used; `line` is where, if that is known."""
        at, recorded = (f":{line}", f" line {line}") if line else ("", "")
        if self._policy == "fail":
            self._problems.add(f"{source.path}{at}: {what}")
        else:
            self._skip(f"file {source.number}{recorded}: {what}", f"{source.path}{at}: {what}")

    def other(self, place: str, what: str) -> None:
        """A row that is in no file holds no document."""
        if self._policy == "fail":
            self._problems.add(f"{place}: {what}")
        else:
            self._skip(f"{place}: {what}", f"{place}: {what}")

    def unreadable(self, line: str) -> None:
        """The rest of a file cannot be read, whatever the policy."""
        self._problems.add(line)

    @property
    def halted(self) -> bool:
        """Whether it will end in an error, so that no further document is to be given."""
        return bool(self._problems)

    def finish(self, num_documents: int) -> None:
        """Raise one `CorpusError` with all there is; also when nothing but bad rows was found."""
        if num_documents == 0 and self.num_skipped:
            for line in self._shown:
                self._problems.add(line)
            more = self.num_skipped - len(self._shown)
            if more:
                self._problems.add(f"and {more:,} more: every row is bad, which `skip` is not for")
        self._problems.raise_if_any()

    def _skip(self, recorded: str, shown: str) -> None:
        """`recorded` names no path: what is published depends on the files' content alone."""
        self.num_skipped += 1
        if len(self.first) < MAX_FIRST:
            self.first.append(recorded)
            self._shown.append(shown)


def record_of(row: Mapping[str, object], place: str, fields: Fields) -> Record:
    """The document of one row. Raises `BadDocumentError` with the place."""
    text = text_of(row, place, text_field=fields.text)
    if fields.date is None:
        return Record(text, place)
    date = field_of(row, place, fields.date, role=" (the date)")
    return Record(text, place, date=_written(date))


def _written(value: object) -> str | None:
    """A date as text, as ISO 8601 where it is a date or a time; None where there is none."""
    if value is None:
        return None
    iso = getattr(value, "isoformat", None)
    return str(iso()) if callable(iso) else str(value)
