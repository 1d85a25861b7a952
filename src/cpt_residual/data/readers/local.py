"""The documents of the user's own files, whatever their kinds; JSON lines and plain text here."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cpt_residual.config.corpora import BadLines
from cpt_residual.core.files import FileState, file_state
from cpt_residual.data.documents.parsing import not_utf8, parse_object
from cpt_residual.data.documents.problems import MAX_PROBLEMS, BadDocumentError, Problems
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import (
    BadRows,
    Fields,
    FileLedger,
    ReadLedger,
    SourceFile,
    record_of,
)
from cpt_residual.data.readers.compressed import file_words, open_bytes, read_error
from cpt_residual.data.readers.csv_rows import read_csv
from cpt_residual.data.readers.files import check_unchanged, suffix_of
from cpt_residual.data.readers.parquet import read_parquet
from cpt_residual.errors import CorpusError

Reader = Callable[[SourceFile, Fields, BadRows], Iterator[Record]]


def read_jsonl(source: SourceFile, fields: Fields, bad: BadRows) -> Iterator[Record]:
    """One document a line. A byte order mark at the file's start is not text."""
    offset, where = 0, file_words(source)
    try:
        with open_bytes(source) as file:
            for number, line in enumerate(file, start=1):
                mark = _mark(line) if number == 1 else 0
                place = f"{source.path}:{number}"
                try:
                    row = parse_object(line[mark:], place, offset=offset + mark, where=where)
                    yield record_of(row, place, fields)
                except BadDocumentError as problem:
                    bad.row(source, number, str(problem).removeprefix(place).removeprefix(": "))
                offset += len(line)
    except OSError as error:
        bad.unreadable(read_error(source, error))


def _mark(line: bytes) -> int:
    return len(codecs.BOM_UTF8) if line.startswith(codecs.BOM_UTF8) else 0


def read_plain(source: SourceFile, fields: Fields, bad: BadRows) -> Iterator[Record]:
    """The whole file as it is, without a byte order mark. A file of no bytes holds no document."""
    if fields.date is not None:
        bad.unreadable(f"{source.path}: plain text has no field '{fields.date}' (the date)")
        return
    try:
        with open_bytes(source) as file:
            content = file.read()
    except OSError as error:
        bad.unreadable(read_error(source, error))
        return
    text = content.removeprefix(codecs.BOM_UTF8)
    mark = len(content) - len(text)
    try:
        document = text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        what = not_utf8("", error, offset=mark, where=file_words(source)).removeprefix(": ")
        bad.document(source, what, line)
        return
    if not content:
        return
    if document.strip():
        yield Record(document, str(source.path))
    else:
        bad.document(source, "the file holds only white space")


_READERS: Mapping[str, Reader] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".txt": read_plain,
    ".parquet": read_parquet,
}


class LocalReader:
    """The documents of `files` in order, one in memory at a time; to be read once.

    file_hashes: sha256 by path, in the order of `files`. That the files are still the pinned ones
    is checked before the first document, and that nobody wrote to one, after the last.
    """

    def __init__(
        self,
        files: Sequence[Path],
        file_hashes: Mapping[str, str],
        *,
        fields: Fields,
        bad_lines: BadLines,
    ) -> None:
        self._files, self._hashes = list(files), dict(file_hashes)
        self._sha256 = list(self._hashes.values())
        self._fields = fields
        problems = Problems("local corpus: some documents cannot be used", _remedy(bad_lines))
        self._bad = BadRows(bad_lines, problems)
        self._ledgers: list[FileLedger] = []

    def __iter__(self) -> Iterator[Record]:
        """Once something is wrong no further document comes; reading goes on to collect the
        problems, then raises one `CorpusError`."""
        states = [file_state(path) for path in self._files]
        check_unchanged(self._files, self._hashes)
        for number, path in enumerate(self._files, start=1):
            yield from self._read(number, path)
        num_documents = sum(ledger.documents for ledger in self._ledgers)
        self._bad.finish(num_documents)
        if num_documents == 0:
            raise CorpusError(
                "local corpus: the files hold no document",
                problems=[f"{path}: no rows" for path in self._files[:MAX_PROBLEMS]],
                remedy="There is nothing to train on: name other files.",
            )
        self._require_settled(states)

    def ledger(self) -> ReadLedger:
        """What was read; to be asked after the last document."""
        return ReadLedger(
            documents=sum(ledger.documents for ledger in self._ledgers),
            characters=sum(ledger.characters for ledger in self._ledgers),
            bad_rows_skipped=self._bad.num_skipped,
            first_bad_rows=tuple(self._bad.first),
            files=tuple(self._ledgers),
        )

    def _require_settled(self, states: Sequence[FileState | None]) -> None:
        changed = [
            str(path)
            for path, state in zip(self._files, states, strict=True)
            if file_state(path) != state
        ]
        if changed:
            raise CorpusError(
                "local corpus: files were written to while they were read",
                problems=changed,
                remedy="What was read is neither the old nor the new content. Start the run again "
                "when nobody writes to them.",
            )

    def _read(self, number: int, path: Path) -> Iterator[Record]:
        suffix = suffix_of(path)
        assert suffix is not None, "resolve_files gives known kinds only"
        source = SourceFile(path, number, suffix)
        num_documents = num_characters = 0
        skipped = self._bad.num_skipped
        for record in _reader(suffix)(source, self._fields, self._bad):
            num_documents += 1
            num_characters += len(record.text)
            if not self._bad.halted:
                yield record
        self._ledgers.append(
            FileLedger(
                kind=suffix,
                sha256=self._sha256[number - 1],
                documents=num_documents,
                characters=num_characters,
                bad_rows_skipped=self._bad.num_skipped - skipped,
            )
        )


def _reader(suffix: str) -> Reader:
    return next(read for kind, read in _READERS.items() if suffix.startswith(kind))


def _remedy(bad_lines: BadLines) -> str:
    if bad_lines == "skip":
        return "`bad_lines: skip` leaves out single rows, not this: correct it and run again."
    return (
        "Nothing is skipped or fixed silently: correct these places and run again. bad_lines=skip "
        "leaves out single rows, counted, but nothing of a damaged file."
    )
