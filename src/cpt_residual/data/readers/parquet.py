"""Parquet: one document a row, read in batches of a few columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import BadRows, Fields, SourceFile, record_of
from cpt_residual.errors import did_you_mean

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_TEXT_TYPES = (
    *("string", "large_string", "string_view", "null"),
    *("binary", "large_binary", "binary_view"),
)


def read_parquet(source: SourceFile, fields: Fields, bad: BadRows) -> Iterator[Record]:
    """One document a row; only the columns that are asked for are read, a part of a row group at a
    time. Pages that carry a checksum are checked against it."""
    import pyarrow as pa
    from pyarrow import parquet

    errors = (OSError, cast("type[Exception]", pa.ArrowException))
    number, group = 0, None
    try:
        with (
            source.path.open("rb", buffering=_BUFFER_BYTES) as opened,
            cast("Any", parquet).ParquetFile(
                opened,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file,
        ):
            if not _columns_fit(source, file.schema_arrow, fields, bad):
                return
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=fields.names, use_threads=False
                ):
                    yield from _rows(batch, source, number, fields, bad)
                    number += batch.num_rows
    except errors as error:
        where = "" if group is None else f", in row group {group}"
        reason = " ".join(str(error).split())
        bad.unreadable(
            f"{source.path}: not readable as Parquet after row {number}{where}: {reason}"
        )


def _rows(
    batch: Any, source: SourceFile, before: int, fields: Fields, bad: BadRows
) -> Iterator[Record]:
    """The documents of a batch; `before` rows of the file come before it."""
    columns = {name: _column(batch, name) for name in fields.names}
    for index in range(batch.num_rows):
        number = before + index + 1
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


def _column(batch: Any, name: str) -> Any:
    """A column, or what a path of names points at in a column of structs."""
    if name in batch.schema.names:
        return batch.column(name)
    from pyarrow import compute

    first, *rest = name.split(".")
    return cast("Any", compute).struct_field(batch.column(first), rest)


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
    """Whether the columns are there and the text may be text; else an error is certain."""
    columns = list(_columns(schema))
    for name in fields.names:
        kinds = [column.type for column in schema if column.name == name]
        kinds = kinds or [kind for path, kind in columns if path == name]
        if len(kinds) != 1:
            paths = [path for path, kind in columns if not _is_struct(kind)]
            how = f"{len(kinds)} columns" if kinds else "no column"
            near = "" if kinds else did_you_mean(name, paths)
            known = ", ".join(f"'{each}'" for each in paths) or "none"
            bad.unreadable(f"{source.path}: {how} '{name}'; columns: {known}.{near}")
            return False
        if name == fields.text and not _may_be_text(kinds[0]):
            bad.unreadable(f"{source.path}: column '{name}' holds {kinds[0]}, not strings")
            return False
    return True


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The path and the type of every column, and of every field of a struct."""
    for field in fields:
        yield f"{prefix}{field.name}", field.type
        if _is_struct(field.type):
            yield from _columns(field.type.fields, f"{prefix}{field.name}.")


def _is_struct(kind: Any) -> bool:
    from pyarrow import types

    return cast("Any", types).is_struct(kind) and kind.num_fields > 0


def _may_be_text(kind: Any) -> bool:
    """Strings, bytes (which writers without a logical type make of them), and nulls only."""
    from pyarrow import types

    plain = kind.value_type if cast("Any", types).is_dictionary(kind) else kind
    return str(plain) in _TEXT_TYPES


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at byte {error.start} of the field"
