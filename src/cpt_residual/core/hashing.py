"""Artifact identity: recipe fingerprint and content hash."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import cast

from pydantic import BaseModel, JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.core.files import replacing

_BLOCK_BYTES = 4 * 1024 * 1024
_SETTLED_SECONDS = 2.0
"""A file younger than this may change again without a new time stamp (coarse clocks)."""


class FileRecord(Frozen):
    """One published file: size in bytes and sha256 of its bytes."""

    size: int
    sha256: str


def plain(value: object, where: str = "recipe") -> JsonValue:
    """`value` as plain JSON values, every field of every model included, under its
    `serialization_alias` where it has one (a field that was renamed keeps its fingerprint).

    Models are walked field by field (pydantic's own dump would leave out excluded fields and
    those of subclasses). What JSON cannot say exactly (NaN, sets, paths) is a TypeError or
    ValueError naming the place: it has no business in an identity.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which has no place in a recipe")
        return value + 0.0  # -0.0 equals 0.0, so it must not be another identity
    if isinstance(value, BaseModel):
        fields: dict[object, object] = {
            field.serialization_alias or name: getattr(value, name)
            for name, field in type(value).model_fields.items()
        }
        return _plain_mapping(fields | (value.model_extra or {}), where)
    if isinstance(value, Mapping):
        return _plain_mapping(cast("Mapping[object, object]", value), where)
    if isinstance(value, (list, tuple)):
        items = cast("list[object] | tuple[object, ...]", value)
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    raise TypeError(f"{where} is a {type(value).__name__}; a recipe holds JSON values only")


def _plain_mapping(mapping: Mapping[object, object], where: str) -> dict[str, JsonValue]:
    result: dict[str, JsonValue] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}; keys of a recipe are strings")
        result[key] = plain(item, f"{where}.{key}")
    return result


def canonical_json(value: object) -> str:
    """The one JSON text of a model or plain value: sorted keys, no spaces, floats by repr."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_sha256(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def fingerprint(
    stage_name: str, version: int, recipe: BaseModel, input_fingerprints: Mapping[str, str]
) -> str:
    """Address of an artifact, known before anything runs: 64 hex digits.

    Moves with every field of the recipe, the stage's name and version, and the role and
    fingerprint of every input; with nothing else (DESIGN: address by recipe).
    """
    identity = {
        "stage": stage_name,
        "version": version,
        "recipe": plain(recipe),
        "inputs": dict(input_fingerprints),
    }
    return text_sha256(canonical_json(identity))


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, links followed; constant memory (two 4 MiB blocks, one of which is
    read while the other is hashed; a smaller file is read at once)."""
    with path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size < _BLOCK_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        blocks = [memoryview(bytearray(_BLOCK_BYTES)) for _ in range(2)]

        def read(number: int) -> memoryview:
            block = blocks[number % 2]
            return block[: stream.readinto(block)]

        return sha256_of_pieces(read)


def sha256_of_pieces(read: Callable[[int], memoryview]) -> str:
    """sha256 of what read(0), read(1), ... give until one gives nothing. One piece is read while
    the one before is hashed, so two pieces need memory of their own."""
    digest, number = hashlib.sha256(), 0
    with ThreadPoolExecutor(1) as reader:
        piece = read(0)
        while piece:
            number += 1
            reading = reader.submit(read, number)
            digest.update(piece)
            piece = reading.result()
    return digest.hexdigest()


def content_hash(files: Mapping[str, FileRecord]) -> str:
    """One hash over names, sizes and bytes of all files of an artifact, in no order."""
    return text_sha256(canonical_json({name: [f.size, f.sha256] for name, f in files.items()}))


_SMALL_BYTES = 1 << 16
"""Hashing so few takes no longer than reading an entry, and far less than writing one."""


class HashCache:
    """Best-effort on-disk cache of the sha256 of files outside the store (source models, corpora).

    An entry counts while absolute path, size, times and inode are those of the file that was read.
    One small file per entry in `folder`, so that processes share it without a lock; nothing is
    written for a small file, for one that changed in the last 2 s, and where `folder` takes none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def remember(self, path: Path, digest: str) -> None:
        """`digest` was taken of the file as it is now, and it will not change unseen."""
        with suppress(OSError):  # another process may have removed it
            stat = path.stat()
            if stat.st_size > _SMALL_BYTES:
                self._keep(_entry_name(path, stat), digest)

    def sha256(self, path: Path) -> str:
        """Hash of a file's bytes; reads the file only when it is new or has changed."""
        started = time.time()
        before = path.stat()
        if before.st_size <= _SMALL_BYTES:
            return file_sha256(path)
        entry = _entry_name(path, before)
        known = _read_entry(self._folder / entry)
        if known is not None:
            return known
        digest = file_sha256(path)
        settled = started - max(before.st_mtime_ns, before.st_ctime_ns) / 1e9 > _SETTLED_SECONDS
        if settled and _entry_name(path, path.stat()) == entry:
            self._keep(entry, digest)
        return digest

    def _keep(self, entry: str, digest: str) -> None:
        with suppress(OSError), replacing(self._folder / entry) as temporary:
            temporary.write_text(digest)


def _read_entry(path: Path) -> str | None:
    with suppress(OSError, ValueError):
        text = path.read_text("ascii")
        return text if re.fullmatch("[0-9a-f]{64}", text) else None
    return None


def _entry_name(path: Path, stat: os.stat_result) -> str:
    state = f"{stat.st_size}/{stat.st_mtime_ns}/{stat.st_ctime_ns}/{stat.st_ino}/"
    return hashlib.sha256(state.encode() + os.fsencode(path.absolute())).hexdigest()[:32]
