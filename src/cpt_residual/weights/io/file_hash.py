"""sha256 of weight files, past the page cache: see `direct`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cpt_residual.core.hashing import sha256_of_pieces
from cpt_residual.weights.io.direct import InputFile, Scratch

_PIECE = 4 << 20  # bytes; two of them are in memory


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, links followed: what `core.hashing.file_sha256` gives, in half the
    time for a large file that is not in the cache, which stays as it is: who reads the file again
    reads it from the disk."""
    num_bytes = path.stat().st_size
    memories = Scratch(), Scratch()
    with closing(InputFile(path, num_bytes)) as file:

        def read(number: int) -> memoryview:
            offset = min(number * _PIECE, num_bytes)
            room = memories[number % 2].room(offset, min(_PIECE, num_bytes - offset))
            return room.values[: file.read(room)].data

        return sha256_of_pieces(read)
