"""sha256 of weight files, past the page cache: see `direct`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from cpt_residual.weights.io.direct import Bytes, InputFile, Scratch

_PIECE = 4 << 20  # bytes; two of them are in memory


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, links followed: what `core.hashing.file_sha256` gives, in half the
    time for a large file that is not in the cache, which stays as it is: who reads the file again
    reads it from the disk. One piece is read while another is hashed."""
    digest = hashlib.sha256()
    for piece in _pieces(path, path.stat().st_size):
        digest.update(piece.data)
    return digest.hexdigest()


def _pieces(path: Path, num_bytes: int) -> Iterator[Bytes]:
    """The file's bytes in order; each piece is valid until the next is asked for."""
    with closing(InputFile(path, num_bytes)) as file, ThreadPoolExecutor(1) as reader:

        def read(offset: int, scratch: Scratch) -> Bytes:
            room = scratch.room(offset, min(_PIECE, num_bytes - offset))
            return room.values[: file.read(room)]

        memory, other = Scratch(), Scratch()  # of the reader's thread
        coming = reader.submit(read, 0, memory)
        for offset in range(_PIECE, num_bytes + _PIECE, _PIECE):
            memory, other = other, memory
            piece, coming = coming.result(), reader.submit(read, min(offset, num_bytes), memory)
            yield piece
