"""The header of one safetensors file, checked: which tensors lie where in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from pydantic import JsonValue

from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import json_object
from cpt_residual.weights.maths.dtypes import DtypeName

ITEM_SIZES: Mapping[str, int] = {"BF16": 2, "F16": 2, "F32": 4}
CONSTANT_SIZES: Mapping[str, int] = {"BOOL": 1, "U8": 1, "I64": 8}
"""Of causal masks and the like, which old files keep beside the weights."""
_SIZES: Mapping[str, int] = {**ITEM_SIZES, **CONSTANT_SIZES}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_MAX_SHOWN = 80
IN_HEADER = "problem(s) in the header"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. `offset` is in bytes from the start of the shard's file."""

    name: str
    dtype: DtypeName
    shape: Shape
    shard: str
    offset: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        return _SIZES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.item_size


@dataclass(frozen=True)
class Shard:
    """One safetensors file. `header` is its raw start, length prefix included; tensors are in
    the order of their offsets, under their stored names; constants: those whose dtype is one of
    CONSTANT_SIZES, which no weight has."""

    name: str
    path: Path
    header: bytes
    num_bytes: int
    tensors: tuple[TensorEntry, ...]
    constants: tuple[TensorEntry, ...] = ()


def _dtype_problem(name: str, dtype: object) -> str:
    """What is wrong with a weight of this dtype."""
    return f"{name}: dtype {_short(dtype)} is not one of {', '.join(sorted(ITEM_SIZES))}"


def read_shard(path: Path, *, with_constants: bool = False) -> Shard:
    """One safetensors file's checked header: sizes, offsets, dtypes, no holes, no overlaps."""
    raw, header, num_bytes = read_header(path)
    problems = _metadata_problems(header.pop("__metadata__", None))
    entries: list[TensorEntry] = []
    for name, fields in header.items():
        entry = _entry(name, fields, shard=path.name, start=len(raw))
        if isinstance(entry, str):
            problems.append(entry)
        elif entry.dtype in ITEM_SIZES or with_constants:
            entries.append(entry)
        else:
            problems.append(_dtype_problem(name, entry.dtype))
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    if not problems:
        problems = _offset_problems(entries, shard=path.name, start=len(raw), end=num_bytes)
    if problems:
        raise ArtifactError(f"{path.name}: {len(problems)} {IN_HEADER}", problems=problems)
    return Shard(
        name=path.name,
        path=path,
        header=raw,
        num_bytes=num_bytes,
        tensors=tuple(entry for entry in entries if entry.dtype in ITEM_SIZES),
        constants=tuple(entry for entry in entries if entry.dtype not in ITEM_SIZES),
    )


def stored_in(shard: Shard) -> list[TensorEntry]:
    """All that one shard holds, in the order of the offsets."""
    return sorted((*shard.tensors, *shard.constants), key=lambda entry: entry.offset)


def read_header(path: Path) -> tuple[bytes, dict[str, JsonValue], int]:
    """The start of a safetensors file, length prefix included, what it says, and the file's size.
    Raises ArtifactError for a file that has no header."""
    if not path.is_file():
        raise ArtifactError(f"{path.name}: the file is missing")
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes > min(num_bytes - 8, _MAX_HEADER_BYTES):
                raise ArtifactError(
                    f"{path.name}: not a safetensors file, or cut inside its header "
                    f"({num_bytes} bytes)"
                )
            raw = file.read(header_bytes)
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    try:
        return prefix + raw, json_object(raw), num_bytes
    except ValueError as error:
        raise ArtifactError(f"{path.name}: the safetensors header is broken: {error}") from error


def _metadata_problems(metadata: JsonValue) -> list[str]:
    if metadata is None or (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        return []
    return ["__metadata__: not texts by name"]


def _entry(name: str, fields: JsonValue, *, shard: str, start: int) -> TensorEntry | str:
    if not isinstance(fields, dict):
        return f"{name}: the entry is not an object"
    dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        return _dtype_problem(name, dtype)
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        shown = f"shape {_short(shape)} or data_offsets {_short(span)}"
        return f"{name}: {shown} are not counts"
    entry = TensorEntry(
        name=name,
        dtype=cast("DtypeName", dtype),
        shape=tuple(shape),
        shard=shard,
        offset=start + span[0],
    )
    if span[1] - span[0] != entry.num_bytes:
        return (
            f"{name}: {dtype} {list(shape)} takes {entry.num_bytes} bytes, "
            f"the header says {span[1] - span[0]}"
        )
    return entry


def _are_counts(value: JsonValue) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _offset_problems(entries: list[TensorEntry], *, shard: str, start: int, end: int) -> list[str]:
    problems: list[str] = []
    expected = start
    for entry in entries:
        if entry.offset != expected:
            kind = "overlaps the tensor before it" if entry.offset < expected else "leaves a hole"
            problems.append(
                f"{entry.name}: byte offset {entry.offset}, expected {expected}: {kind}"
            )
        expected = entry.offset + entry.num_bytes
    if expected != end and not problems:
        kind = "is truncated" if end < expected else "has bytes after its last tensor"
        problems.append(f"{shard} {kind}: {end} bytes, its header describes {expected}")
    return problems
