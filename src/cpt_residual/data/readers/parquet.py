"""Parquet: one document a row, read in batches of a few columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from cpt_residual.data.problems import BadDocumentError
from cpt_residual.data.readers.rows import BadRows, Fields, SourceFile, record_of
from cpt_residual.data.records import Record
from cpt_residual.errors import did_you_mean

__all__ = ["read_parquet"]

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20


def read_parquet(source: SourceFile, fields: Fields, bad: BadRows) -> Iterator[Record]:
    """One document a row; only the columns that are asked for are read, a part of a row group at a
    time."""
    import pyarrow as pa
    from pyarrow import parquet

    errors = (OSError, cast("type[Exception]", pa.ArrowException))
    number = 0
    try:
        with cast("Any", parquet).ParquetFile(
            str(source.path), buffer_size=_BUFFER_BYTES, pre_buffer=False
        ) as file:
            if not _columns_fit(source, file.schema_arrow, fields, bad):
                return
            for batch in file.iter_batches(_BATCH_ROWS, columns=fields.names, use_threads=False):
                columns = {name: batch.column(name) for name in fields.names}
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{source.path} row {number}"
                    try:
                        # One by one, so that a value that is not UTF-8 is known by its row.
                        row = {name: _python(column[index]) for name, column in columns.items()}
                        yield record_of(row, place, fields)
                    except BadDocumentError as problem:
                        what = str(problem).removeprefix(place).removeprefix(": ")
                        bad.row(source, number, what, unit="row")
                    except UnicodeDecodeError as error:
                        bad.row(source, number, _not_utf8(error), unit="row")
    except errors as error:
        reason = " ".join(str(error).split())
        bad.unreadable(f"{source.path}: not readable as Parquet after row {number}: {reason}")


def _python(scalar: Any) -> object:
    """The value as Python has it; a time that Python has not (the year 3,000,000, an unknown zone)
    as the number in the file, which no one takes for a date."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, LookupError, OverflowError):
        return getattr(scalar, "value", None)


def _columns_fit(source: SourceFile, schema: Any, fields: Fields, bad: BadRows) -> bool:
    """Whether the columns are there and the text is text; else an error is certain."""
    from pyarrow import types

    kinds = cast("Any", types)
    names = list(schema.names)
    for name in fields.names:
        if names.count(name) != 1:
            how = "no column" if name not in names else f"{names.count(name)} columns"
            near = "" if name in names else did_you_mean(name, names)
            columns = ", ".join(f"'{each}'" for each in names) or "none"
            bad.unreadable(f"{source.path}: {how} '{name}'; columns: {columns}.{near}")
            return False
    kind = schema.field(fields.text).type
    plain = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_string(plain) or kinds.is_large_string(plain) or kinds.is_string_view(plain)):
        bad.unreadable(f"{source.path}: column '{fields.text}' holds {kind}, not strings")
        return False
    return True


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at byte {error.start} of the field"
