"""JSON lines: one object a line, UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from cpt_residual.data.documents.parsing import parse_object
from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import BadRows, Fields, SourceFile, record_of
from cpt_residual.data.readers.compressed import file_words, open_bytes, read_error


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
