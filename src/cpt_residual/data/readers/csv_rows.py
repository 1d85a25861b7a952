"""CSV (RFC 4180): a header, then one document a row; quoted fields may hold line feeds.

Python's csv module in strict mode reads it: pyarrow's reader takes a quote that never ends, text
after a closing quote, empty rows and a repeated column name without a word.

The text is decoded with `surrogateescape`: a byte that is not UTF-8 becomes half a surrogate pair,
which no valid text holds, so the row and the field it is in are known and the next row can be read.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import BadRows, Fields, SourceFile, record_of
from cpt_residual.data.readers.compressed import open_bytes, read_error
from cpt_residual.errors import did_you_mean

if TYPE_CHECKING:
    from _csv import Reader

MAX_FIELD_CHARACTERS = 1 << 28
"""A longer field is taken for a quote that never ends, which would read the whole file into memory
(the csv module's own limit, 131,072, is shorter than many documents)."""

_ESCAPED = re.compile("[\udc80-\udcff]")


def read_csv(source: SourceFile, fields: Fields, bad: BadRows) -> Iterator[Record]:
    """One document a row; its place is the row's first line."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the module has one limit for the whole process
    try:
        with open_bytes(source) as file:
            _skip_mark(file)
            # newline="": line ends inside quotes belong to the text.
            lines = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
            try:
                yield from _read(source, csv.reader(lines, strict=True), fields, bad)
            finally:
                lines.detach()  # `file` is closed by who opened it
    except OSError as error:
        bad.unreadable(read_error(source, error))


def _read(source: SourceFile, rows: Reader, fields: Fields, bad: BadRows) -> Iterator[Record]:
    header = _header(source, rows, fields, bad)
    if header is None:
        return
    while True:
        line = rows.line_num + 1
        try:
            values = next(rows, None)
        except csv.Error as error:
            bad.unreadable(
                f"{source.path}:{line}: not CSV: {error} (in the row that begins here; from here on"
                " it is not known where rows end)"
            )
            return
        if values is None:
            return
        place = f"{source.path}:{line}"
        try:
            yield record_of(_row(values, header, fields, place), place, fields)
        except BadDocumentError as problem:
            bad.row(source, line, str(problem).removeprefix(place).removeprefix(": "))


def _header(source: SourceFile, rows: Reader, fields: Fields, bad: BadRows) -> Sequence[str] | None:
    """The names of the columns. None when the file has no byte, or when those asked for are
    missing: then an error is certain."""
    try:
        header = next(rows, None)
    except csv.Error as error:
        bad.unreadable(f"{source.path}:1: not CSV: {error}")
        return None
    if header is None:
        return None
    if any(_escaped(name) for name in header):
        bad.unreadable(f"{source.path}:1: the names of the columns are not UTF-8")
        return None
    for name in fields.names:
        if header.count(name) != 1:
            how = "no column" if name not in header else f"{header.count(name)} columns"
            near = "" if name in header else did_you_mean(name, header)
            columns = ", ".join(f"'{each}'" for each in header) or "none"
            bad.unreadable(f"{source.path}: {how} '{name}'; columns: {columns}.{near}")
            return None
    return header


def _row(
    values: Sequence[str], header: Sequence[str], fields: Fields, place: str
) -> dict[str, object]:
    if not values:
        raise BadDocumentError(f"{place}: empty line")
    if len(values) != len(header):
        raise BadDocumentError(f"{place}: {len(values)} fields, but {len(header)} columns")
    row = dict(zip(header, values, strict=True))
    for name in fields.names:
        found = _escaped(row[name])
        if found is not None:
            byte = ord(found.group()) - 0xDC00
            raise BadDocumentError(
                f"{place}: field '{name}' is not UTF-8: byte 0x{byte:02x} at character "
                f"{found.start()} of the field"
            )
    return dict(row)


def _escaped(text: str) -> re.Match[str] | None:
    """The first byte that was not UTF-8."""
    return None if text.isascii() else _ESCAPED.search(text)


def _skip_mark(file: io.BufferedReader) -> None:
    """Go past a byte order mark: it belongs to the encoding, not to the first column's name."""
    if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
