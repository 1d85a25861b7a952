"""A known state of the page cache: files read into it, or dropped from it, without rights."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

_BLOCK = 16 << 20


def evict(folders: Iterable[Path]) -> None:
    """Drops the pages of clean files. The files must have been flushed."""
    for file in _opened(folders):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def load(folders: Sequence[Path]) -> None:
    """Reads every file once, unless it is in the page cache already."""
    if resident_share(folders) > 0.999:
        return
    buffer = memoryview(bytearray(_BLOCK))
    for file in _opened(folders):
        offset = 0
        while count := os.preadv(file, [buffer], offset):
            offset += count


def flush(folder: Path) -> float:
    """Seconds until every file is on the disk."""
    started = time.perf_counter()
    for file in _opened([folder]):
        os.fsync(file)
    return time.perf_counter() - started


def resident_share(folders: Iterable[Path]) -> float:
    """Share of the files' pages that lie in the page cache (mincore)."""
    num_pages = num_resident = 0
    for file in _opened(folders):
        found = _resident_pages(file)
        num_pages, num_resident = num_pages + found.size, num_resident + int(found.sum())
    return num_resident / num_pages if num_pages else 0.0


def available_bytes() -> int:
    """Memory that programs and the page cache may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _resident_pages(file: int) -> np.ndarray:
    size = os.fstat(file).st_size
    if size == 0:
        return np.zeros(0, dtype=np.uint8)
    flags = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    with mmap.mmap(file, size, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(flags.ctypes.data),
        )
        del view  # a mapping with views cannot be closed
    if status != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return flags & 1


def _opened(folders: Iterable[Path]) -> Iterator[int]:
    paths = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    for path in paths:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)
