"""The bytes of a user's files are a door: whatever they are, they are read, or refused in words."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.config.corpora import BadLines
from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.readers.base import Fields
from cpt_residual.data.readers.local import LocalReader
from cpt_residual.errors import CorpusError
from support.text_files import ROW_SUFFIXES, pack, write_rows

TEXTS = ["naïve 日本\nsecond line", 'with "quotes", commas\r\n', " x ", "word " * 40] * 5
SUFFIXES = (*ROW_SUFFIXES, ".txt", ".txt.gz", ".txt.zst")
BITS = (
    b"\x00",
    b"\xff",
    b"\xff\xfe",
    b'"',
    b"\n",
    b",",
    b"{",
    b"\x1f\x8b\x08",
    b"(\xb5/\xfd",
    b"PAR1",
)

Mutation = Callable[[random.Random, bytearray], bytearray]


def _flip(chance: random.Random, raw: bytearray) -> bytearray:
    for _ in range(chance.choice((1, 1, 4, 32))):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return raw


def _cut(chance: random.Random, raw: bytearray) -> bytearray:
    return raw[: chance.randrange(len(raw))]


def _drop(chance: random.Random, raw: bytearray) -> bytearray:
    first = chance.randrange(len(raw))
    return raw[:first] + raw[first + chance.randrange(1, 64) :]


def _insert(chance: random.Random, raw: bytearray) -> bytearray:
    first = chance.randrange(len(raw) + 1)
    return raw[:first] + chance.choice(BITS) * chance.choice((1, 1, 100)) + raw[first:]


def _overwrite(chance: random.Random, raw: bytearray) -> bytearray:
    first, size = chance.randrange(len(raw)), chance.randrange(1, 64)
    return raw[:first] + chance.randbytes(size) + raw[first + size :]


def _begin_late(chance: random.Random, raw: bytearray) -> bytearray:
    return raw[chance.randrange(len(raw)) :]


def _twice(_: random.Random, raw: bytearray) -> bytearray:
    return raw + raw


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _cut, _drop, _insert, _overwrite, _begin_late, _twice
)  # fmt: skip


def _whole(folder: Path, suffix: str) -> bytes:
    path = folder / f"whole{suffix}"
    if suffix.startswith(".txt"):
        pack(path, "".join(TEXTS).encode())
    else:
        write_rows(path, TEXTS, dates=["2024-01-02"] * len(TEXTS))
    return path.read_bytes()


def _read(path: Path, policy: BadLines) -> None:
    """Ends, and in nothing but documents or the error for a corpus, of one line a problem."""
    date = None if ".txt" in path.suffixes else "date"
    hashes = {str(path): file_sha256(path)}
    reader = LocalReader([path], hashes, fields=Fields("text", date), bad_lines=policy)
    try:
        documents = [record.text for record in reader]
    except CorpusError as refused:
        _check_words(refused, path)
        return
    assert documents
    assert all(text.strip() and text.encode() for text in documents)
    assert reader.ledger().documents == len(documents)


def _check_words(error: CorpusError, path: Path) -> None:
    assert error.problems
    for line in error.problems:
        assert line.startswith((str(path), "(further", "and ")), error
        assert line.isprintable()


def _fuzz(folder: Path, suffix: str, *, num_mutations: int, seed: int) -> None:
    chance = random.Random(f"{suffix}/{seed}")
    whole = _whole(folder, suffix)
    path = folder / f"mutated{suffix}"
    for number in range(num_mutations):
        raw = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2))):
            raw = chance.choice(MUTATIONS)(chance, raw) or bytearray(b"x")
        path.write_bytes(raw)
        _read(path, "skip" if number % 2 else "fail")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated_files(tmp_path: Path, suffix: str) -> None:
    _fuzz(tmp_path, suffix, num_mutations=100, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_mutated_files(tmp_path: Path, suffix: str) -> None:
    _fuzz(tmp_path, suffix, num_mutations=1000, seed=1)
