"""Random access to the lines of a JSON-lines file, and the seeded order to read them in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from cpt_residual.errors import CorpusError

Offsets = npt.NDArray[np.int64]

_BLOCK_BYTES = 1 << 22


class LineIndex:
    """The lines of a file by number: 8 bytes of memory a line, one sequential read to open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = _line_starts(path)
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def begins(self) -> Offsets:
        """Where each line begins in the file."""
        return self._starts[:-1]

    @property
    def ends(self) -> Offsets:
        """Where each line ends, its line feed included."""
        return self._starts[1:]

    @property
    def sizes(self) -> Offsets:
        """Bytes of each line, its line feed included; made anew every time."""
        return np.diff(self._starts)

    def line(self, number: int) -> bytes:
        """Line `number`, counted from 0, without its line feed."""
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        return os.pread(self._descriptor, end - start, start).rstrip(b"\n")

    def place(self, number: int) -> str:
        """`file:line` of line `number`, for messages (lines counted from 1)."""
        return f"{self.path.name}:{number + 1}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def seeded_order(num_documents: int, *, seed: int, name: str, epoch: int) -> Offsets:
    """A permutation of `range(num_documents)` that depends on its arguments and nothing else.

    Documents are sorted by a hash of their number, so the order does not hang on the version of
    a random generator, and documents added to the end of a corpus do not reorder the others.
    """
    key = hashlib.sha256(f"order/{seed}/{epoch}/{name}".encode()).digest()[:8]
    ranks = _splitmix64(
        np.arange(num_documents, dtype=np.uint64) ^ np.uint64(int.from_bytes(key, "little"))
    )
    return np.argsort(ranks, kind="stable").astype(np.int64, copy=False)


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit numbers."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _line_starts(path: Path) -> Offsets:
    """Byte offset of every line, and the file's size at the end."""
    if not path.is_file():
        raise CorpusError(
            f"{path.name}: no such documents file",
            problems=[str(path)],
            remedy="Name another corpus in the pack's `sources`, or build this one again.",
        )
    starts, size = [np.zeros(1, dtype=np.int64)], 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            starts.append(ends.astype(np.int64) + (size + 1))
            size += len(block)
    found = np.concatenate(starts)
    return found if found[-1] == size else np.append(found, np.int64(size))  # no last line feed
