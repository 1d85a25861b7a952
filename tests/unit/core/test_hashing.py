from __future__ import annotations

import hashlib
import os
from enum import IntEnum, StrEnum
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from cpt_residual.core import hashing
from cpt_residual.core.hashing import (
    FileRecord,
    HashCache,
    canonical_json,
    content_hash,
    file_sha256,
    fingerprint,
)


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Inner(BaseModel):
    rate: float = 1.0e-5


class Wide(Inner):
    extra_field: int = 7


class Outer(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")

    name: str = "a"
    inner: Inner = Inner()
    items: tuple[int, ...] = (1, 2)
    table: dict[str, bool | None] = {}
    hidden: int = Field(default=3, exclude=True)


def _fingerprint(recipe: BaseModel) -> str:
    return fingerprint("stage", 1, recipe, {})


def test_canonical_json_is_sorted_and_exact() -> None:
    text = canonical_json(Outer(name="ü", table={"b": None, "a": True}))
    assert text == (
        '{"hidden":3,"inner":{"rate":1e-05},"items":[1,2],"name":"\\u00fc",'
        '"table":{"a":true,"b":null}}'
    )


def test_fingerprint_is_the_same_on_every_machine_and_day() -> None:
    found = fingerprint("cpt", 2, Outer(), {"start": "aa", "pack": "bb"})
    assert found == "97b1ca46384101b4d2baf2439d20e8cb2d576a36c84b1801b04175112b691204"


def test_fingerprint_moves_with_name_version_inputs_and_roles() -> None:
    recipe = Outer()
    variants = {
        fingerprint("a", 1, recipe, {"x": "f"}),
        fingerprint("b", 1, recipe, {"x": "f"}),
        fingerprint("a", 2, recipe, {"x": "f"}),
        fingerprint("a", 1, recipe, {"y": "f"}),
        fingerprint("a", 1, recipe, {"x": "g"}),
        fingerprint("a", 1, recipe, {}),
    }
    assert len(variants) == 6
    assert fingerprint("a", 1, recipe, {"x": "f", "y": "g"}) == fingerprint(
        "a", 1, recipe, {"y": "g", "x": "f"}
    )


def test_fingerprint_sees_excluded_extra_and_subclass_fields() -> None:
    base = _fingerprint(Outer())
    assert _fingerprint(Outer(hidden=4)) != base
    assert _fingerprint(Outer.model_validate({"surprise": 1})) != base
    wide = _fingerprint(Outer(inner=Wide()))
    assert wide != base
    assert _fingerprint(Outer(inner=Wide(extra_field=8))) != wide


def test_zero_has_one_identity() -> None:
    assert _fingerprint(Inner(rate=-0.0)) == _fingerprint(Inner(rate=0.0))


def test_enums_count_by_value() -> None:
    assert canonical_json({"c": Colour.RED, "n": Number.ONE}) == '{"c":"red","n":1}'


def test_what_has_no_exact_json_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"recipe\.inner\.rate is nan"):
        canonical_json(Outer(inner=Inner(rate=float("nan"))))
    with pytest.raises(TypeError, match=r"recipe\.a\[1\] is a PosixPath"):
        canonical_json({"a": [1, Path("x")]})
    with pytest.raises(TypeError, match="keys of a recipe are strings"):
        canonical_json({"a": {1: 2}})


@pytest.mark.parametrize("num_bytes", [0, 1, 6, 7, 8, 14, 50])
def test_file_sha256_reads_in_blocks(
    num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_BLOCK_BYTES", 7)
    data = os.urandom(num_bytes)
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_content_hash_sees_names_sizes_and_bytes_but_no_order() -> None:
    one, two = FileRecord(size=1, sha256="aa"), FileRecord(size=1, sha256="bb")
    assert content_hash({"x": one, "y": two}) == content_hash({"y": two, "x": one})
    others = [{"x": two, "y": one}, {"x": one}, {"x": one, "z": two}]
    assert len({content_hash(files) for files in [{"x": one, "y": two}, *others]}) == 4


class _Reads:
    """Counts how often a file is really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = hashing.file_sha256

        def counted(path: Path) -> str:
            self.count += 1
            return real(path)

        monkeypatch.setattr(hashing, "file_sha256", counted)


def _old_file(path: Path, text: str, age_seconds: int = 100) -> Path:
    path.write_text(text)
    stat = path.stat()
    time_ns = stat.st_mtime_ns - age_seconds * 1_000_000_000
    os.utime(path, ns=(time_ns, time_ns))
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as old (the change time of a test's file is always now)."""
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", -10.0)


@pytest.mark.usefixtures("settled")
def test_hash_cache_reads_once_and_shares_between_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _Reads(monkeypatch)
    file = _old_file(tmp_path / "model", "weights" * 10_000)
    first = HashCache(tmp_path / "cache").sha256(file)
    assert HashCache(tmp_path / "cache").sha256(file) == first
    assert first == hashlib.sha256(b"weights" * 10_000).hexdigest()
    assert reads.count == 1


@pytest.mark.usefixtures("settled")
def test_hash_cache_of_a_name_that_is_not_utf8_and_of_a_folder_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _Reads(monkeypatch)
    file = _old_file(tmp_path / os.fsdecode(b"caf\xe9"), "weights" * 10_000)
    (tmp_path / "full").write_text("a file is no folder")
    for folder, expected in (("cache", 1), ("cache", 1), ("full", 2), ("full/deeper", 3)):
        found = HashCache(tmp_path / folder).sha256(file)
        assert found == hashlib.sha256(b"weights" * 10_000).hexdigest()
        assert reads.count == expected


@pytest.mark.usefixtures("settled")
def test_hash_cache_sees_a_change_even_with_size_and_time_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _Reads(monkeypatch)
    cache = HashCache(tmp_path / "cache")
    file = _old_file(tmp_path / "model", "weights" * 10_000)
    cache.sha256(file)
    stat = file.stat()
    file.write_text("WEIGHTS" * 10_000)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.sha256(file) == hashlib.sha256(b"WEIGHTS" * 10_000).hexdigest()
    assert reads.count == 2


def test_hash_cache_does_not_trust_a_file_that_was_just_written(tmp_path: Path) -> None:
    (tmp_path / "fresh").write_text("x" * 100_000)
    HashCache(tmp_path / "cache").sha256(tmp_path / "fresh")
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("settled")
def test_hash_cache_survives_a_broken_entry(tmp_path: Path) -> None:
    file = _old_file(tmp_path / "model", "weights" * 10_000)
    cache = HashCache(tmp_path / "cache")
    expected = cache.sha256(file)
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_text("{")
    assert cache.sha256(file) == expected


def test_a_renamed_field_keeps_its_fingerprint() -> None:
    class Old(BaseModel):
        max_passes: int

    class New(BaseModel):
        max_epochs: int = Field(serialization_alias="max_passes")

    assert _fingerprint(New(max_epochs=2)) == _fingerprint(Old(max_passes=2))
