"""Plain text: one file is one document, and has to fit into memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from cpt_residual.data.documents.parsing import not_utf8
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import BadRows, Fields, SourceFile
from cpt_residual.data.readers.compressed import file_words, open_bytes, read_error


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
