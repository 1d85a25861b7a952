"""Direct I/O for large files, bypassing the page cache.

With O_DIRECT whole pages go between the disk and our own memory. That spares the processor a copy
of every byte and other programs their cached files. Our memory is in huge pages: a virtual disk is
told of a megabyte as one piece instead of 256, and moves it in less than half the time. What the
cache already holds is read from there; small files, and file systems without O_DIRECT, get ordinary
reads and writes, and so do files that this user neither owns nor may write: of those Linux does not
tell what it holds. The bytes are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from cpt_residual.launch.environment import wants_direct_io

Bytes = npt.NDArray[np.uint8]
Piece = tuple[int, bytes]  # with its place in the file

PAGE = 4096
"""Bytes. A multiple of what disks ask for: addresses, offsets and lengths are multiples of it."""
_HUGE_PAGE = 2 << 20
LARGE_FILE = 64 << 20
"""Bytes; smaller files get ordinary reads and writes."""
_WINDOW = 32 << 20
"""Bytes of a file that the system is asked about at once: for all of it the first readers would
wait."""
_WORTH_IT = 1 << 16  # bytes of one read or write
_MOST_EDGES = 1024  # of less than a page each
_NOT_SUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Room(NamedTuple):
    """Memory for the bytes of a file from `offset` on: `values`, inside whole `pages`."""

    offset: int
    values: Bytes
    pages: Bytes


class Scratch(threading.local):
    """Memory that each thread uses again and again; a file's pages are pages in it."""

    def __init__(self) -> None:
        self._memory: Bytes = np.empty(0, dtype=np.uint8)

    def room(self, offset: int, num_bytes: int) -> Room:
        """Room for bytes of a file, of any content, valid until this thread's next call."""
        before = offset % PAGE
        num_in_pages = _up(before + num_bytes)
        if self._memory.size < num_in_pages:
            self._memory = _page_aligned(num_in_pages)
        pages = self._memory[:num_in_pages]
        return Room(offset, pages[before : before + num_bytes], pages)

    def array(self, size: int, dtype: np.dtype[Any], *, offset: int = 0) -> npt.NDArray[Any]:
        """Room for `size` elements that lie at `offset` in a file."""
        offset = 0 if offset % dtype.itemsize else offset  # elements stay aligned
        return self.room(offset, size * dtype.itemsize).values.view(dtype)


class InputFile:
    """A file of `num_bytes` that is read in pieces; may be used by several threads. `once`: no
    piece will be read again soon."""

    def __init__(self, path: Path, num_bytes: int, *, once: bool = True) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._direct: int | None = None
        self._cached = self._file
        self._num_bytes = num_bytes
        self._resident: dict[int, Bytes] = {}  # a bit for each page, by window
        self._asking = threading.Lock()
        try:
            if once and num_bytes >= LARGE_FILE and _cache_is_told(path, self._file):
                self._direct = _open_direct(path, os.O_RDONLY)
            if self._direct is not None:
                self._cached = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                _read_nothing_ahead(self._cached)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in {self._file, self._cached, self._direct} - {None}:
            os.close(cast("int", file))

    def read(self, room: Room) -> int:
        """Fills `room.values`, directly unless the cache holds it; returns how many bytes there
        were."""
        if self._is_direct(room):
            try:
                return self._read_pages(room)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
        return _read_fully(self._cached, room.values.data, room.offset)

    def read_into(self, memory: memoryview, offset: int) -> int:
        """As `read`, into any memory, with ordinary reads."""
        return _read_fully(self._file, memory, offset)

    def _is_direct(self, room: Room) -> bool:
        """Whether most of it was not in the cache when its surroundings were first read."""
        if self._direct is None or room.values.size < _WORTH_IT:
            return False
        start = room.offset // PAGE * PAGE
        stop = min(start + room.pages.size, self._num_bytes)
        pages = [
            self._resident_in(window)[max(start - window, 0) // PAGE : _up(stop - window) // PAGE]
            for window in range(start // _WINDOW * _WINDOW, stop, _WINDOW)
        ]
        num_pages = sum(part.size for part in pages)
        return 2 * sum(int(np.count_nonzero(part)) for part in pages) < num_pages

    def _resident_in(self, window: int) -> Bytes:
        """For each page from the byte `window` on whether it lay in the cache when somebody first
        asked."""
        num_bytes = min(_WINDOW, self._num_bytes - window)
        with self._asking:
            if window not in self._resident:
                pages = _resident_pages(self._file, window, num_bytes)
                self._resident[window] = np.packbits(pages)
        return np.unpackbits(self._resident[window], count=-(-num_bytes // PAGE))

    def _read_pages(self, room: Room) -> int:
        assert self._direct is not None
        before = room.offset % PAGE
        memory, found = room.pages.data, 0
        while found < memory.nbytes:
            count = os.preadv(self._direct, [memory[found:]], room.offset - before + found)
            found += count
            if count == 0 or count % PAGE:  # the end of the file, or all that came at once
                break
        done = max(0, min(found - before, room.values.size))
        rest = room.values[done:].data
        return done + _read_fully(self._cached, rest, room.offset + done)


class OutputFile:
    """A new file of `num_bytes` that is written in pieces, each byte once; may be used by several
    threads. Nothing is complete before `flush`.

    Raises OSError: ENOSPC when there is no room for all of it."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._edges: dict[int, list[Piece]] = {}  # by page
        self._lock = threading.Lock()
        try:
            _reserve(self._file, num_bytes)
            large = num_bytes >= LARGE_FILE
            self._direct = _open_direct(path, os.O_WRONLY) if large else None
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        """Closes the file; more than once is fine."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)
            if self._direct is not None:
                os.close(self._direct)
                self._direct = None

    def flush(self) -> None:
        """Returns when every byte is on the disk."""
        with self._lock:
            left = self._taken()
        self._write_pieces(left)
        os.fsync(self._file)

    def write(self, values: Bytes, offset: int) -> None:
        """Puts `values` at `offset`: whole pages directly where they are pages in memory too. What
        is left at both ends waits for the rest of its page: an ordinary write waits for all direct
        ones."""
        first = _up(offset) - offset
        last = (offset + values.size) // PAGE * PAGE - offset
        fits = values.ctypes.data % PAGE == offset % PAGE and last - first >= _WORTH_IT
        if self._direct is None or not fits:
            _write_fully(self._file, [values.data], offset)
            return
        with self._lock:
            before = self._completed(offset, values[:first])
            after = self._completed(offset + last, values[last:])
            left = self._taken() if len(self._edges) >= _MOST_EDGES else []
        pages = [page.data for page in (before, values[first:last], after) if page is not None]
        start = offset + first - (0 if before is None else PAGE)
        try:
            _write_fully(self._direct, pages, start)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            _write_fully(self._file, pages, start)
        self._write_pieces(left)

    def _completed(self, offset: int, values: Bytes) -> Bytes | None:
        """Keeps a piece of a page; gives the page when that was the last of it."""
        if not values.size:
            return None
        number = offset // PAGE
        pieces = self._edges.setdefault(number, [])
        pieces.append((offset, values.tobytes()))
        if sum(len(piece) for _, piece in pieces) < PAGE:
            return None
        del self._edges[number]
        page = _page_aligned(PAGE)
        page[:] = np.frombuffer(b"".join(piece for _, piece in sorted(pieces)), dtype=np.uint8)
        return page

    def _taken(self) -> list[Piece]:
        """The pieces whose pages are not complete; they are no longer kept."""
        pieces = [piece for kept in self._edges.values() for piece in kept]
        self._edges = {}
        return pieces

    def _write_pieces(self, pieces: list[Piece]) -> None:
        for offset, piece in sorted(pieces):
            _write_fully(self._file, [memoryview(piece)], offset)


def _resident_pages(file: int, start: int, num_bytes: int) -> Bytes:
    """For each page 1 if it lies in the page cache (mincore), or the system does not tell: then it
    is read as if it did."""
    try:
        window = mmap.mmap(file, num_bytes, prot=mmap.PROT_READ, offset=start)
    except (OSError, ValueError):  # no maps on this file system, or the file has shrunk
        return np.ones(-(-num_bytes // PAGE), dtype=np.uint8)
    with window:
        view = np.frombuffer(window, dtype=np.uint8)  # touches nothing
        flags = np.ones(-(-view.size // PAGE), dtype=np.uint8)
        where, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size)
        _libc().mincore(where, length, ctypes.c_void_p(flags.ctypes.data))
        del view  # a map with views cannot be closed
    return np.bitwise_and(flags, 1, out=flags)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _open_direct(path: Path, flags: int) -> int | None:
    """The file opened with O_DIRECT; None where that does not exist or is not wanted."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct or mmap.PAGESIZE != PAGE or not wants_direct_io():
        return None
    try:
        return os.open(path, flags | direct | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return None
        raise


def _cache_is_told(path: Path, file: int) -> bool:
    """Whether Linux says what the cache holds of a file: to its owner and to who may write it."""
    return os.fstat(file).st_uid == os.geteuid() or os.access(path, os.W_OK)


def _read_nothing_ahead(file: int) -> None:
    """Ordinary reads bring in what is asked for and no more. Where the system reads megabytes ahead
    (8 MiB on a cloud disk), the next piece would be found in the cache and read from there, which
    brings in more, and so on: up to half of a cold model at half the speed."""
    with contextlib.suppress(OSError):  # an advice
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)


def _read_fully(file: int, memory: memoryview, offset: int) -> int:
    """Fills `memory`; returns how many bytes there were."""
    num_read = 0
    while num_read < memory.nbytes:
        count = os.preadv(file, [memory[num_read:]], offset + num_read)
        if count == 0:
            break
        num_read += count
    return num_read


def _reserve(file: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except AttributeError:  # not on every system
        os.ftruncate(file, num_bytes)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        os.ftruncate(file, num_bytes)


def _write_fully(file: int, memories: list[memoryview], offset: int) -> None:
    """Writes pieces of memory that follow each other in the file."""
    while memories:
        count = os.pwritev(file, memories, offset)
        offset += count
        while memories and count >= memories[0].nbytes:
            count -= memories[0].nbytes
            memories = memories[1:]
        if memories:
            memories = [memories[0][count:], *memories[1:]]


def _page_aligned(num_bytes: int) -> Bytes:
    """Memory that begins at a page: at a huge one, and in huge ones where the system has them, if
    it is worth one."""
    if num_bytes < _HUGE_PAGE:
        memory = np.empty(num_bytes + PAGE, dtype=np.uint8)
        return memory[-memory.ctypes.data % PAGE :][:num_bytes]
    span = num_bytes + 2 * _HUGE_PAGE  # to begin at a huge page, and to have the last one whole
    room = mmap.mmap(-1, span, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # systems without
        room.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(room, dtype=np.uint8)  # holds on to it
    return memory[-memory.ctypes.data % _HUGE_PAGE :][:num_bytes]


def _up(offset: int) -> int:
    return -(-offset // PAGE) * PAGE
