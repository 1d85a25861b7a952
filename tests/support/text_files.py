"""The same documents as files of every kind."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

ROW_SUFFIXES = (
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.zst",
    ".csv",
    ".csv.gz",
    ".csv.zst",
    ".parquet",
)
"""Kinds that hold one document a row."""


def write_rows(
    path: Path, texts: Sequence[str], *, field: str = "text", dates: Sequence[str] | None = None
) -> Path:
    """`texts` as a file of the kind that the name of `path` says, beside a column `id`."""
    columns: dict[str, list[str]] = {"id": [str(i) for i in range(len(texts))], field: [*texts]}
    if dates is not None:
        columns["date"] = list(dates)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=3)
    elif ".csv" in path.suffixes:
        pack(path, csv_bytes(columns))
    else:
        values = zip(*columns.values(), strict=True)
        rows = [dict(zip(columns, each, strict=True)) for each in values]
        pack(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def csv_bytes(columns: dict[str, list[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def pack(path: Path, content: bytes) -> Path:
    """Write `content`, compressed as the name says, in two members or frames."""
    half = len(content) // 2
    parts = [content[:half], content[half:]]
    if path.suffix == ".gz":
        parts = [gzip.compress(part) for part in parts]
    elif path.suffix == ".zst":
        parts = [pa.Codec("zstd").compress(part, asbytes=True) for part in parts]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))
    return path
