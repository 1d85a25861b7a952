"""Measured runs of `weights.py`: one command at a time, from a known state of the page cache."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROBE = Path(__file__).with_name("weights_probe.py")
_BLOCK = 16 << 20
_LIKE_A_USER = ("env", "-u", "PYTHONDONTWRITEBYTECODE")  # no program compiles itself every time


class RunError(Exception):
    """A command ended with an error; the text holds the end of its output."""


@dataclass(frozen=True)
class Run:
    """What one command took.

    seconds: wall time of the whole process. flush_seconds: then, until its output was on the disk
    (next to nothing for programs that flush themselves). resident_before: share of the input bytes
    in the page cache when it started.
    """

    seconds: float
    flush_seconds: float
    cpu_seconds: float
    peak_bytes: int
    anonymous_bytes: int
    resident_before: float


def run(command: Sequence[str], *, out: Path, scratch: Path, reads: Sequence[Path]) -> Run:
    """Runs a command that writes below `out`. Raises RunError with the end of its output."""
    command = [*_LIKE_A_USER, *command]
    report, log = scratch / "probe.json", scratch / "output.txt"
    report.unlink(missing_ok=True)
    resident = resident_share(reads)
    probe = [sys.executable, "-I", "-S", str(PROBE), str(report), str(log), *command]
    done = subprocess.run(probe, check=False)
    found = json.loads(report.read_text()) if report.is_file() else {"exit_status": done.returncode}
    if found["exit_status"] != 0:
        lines = log.read_text(errors="replace").splitlines()[-25:]
        raise RunError(
            f"exit status {found['exit_status']}: {' '.join(command)}\n" + "\n".join(lines)
        )
    return Run(
        seconds=found["seconds"],
        flush_seconds=_flush(out),
        cpu_seconds=found["cpu_seconds"],
        peak_bytes=found["peak_bytes"],
        anonymous_bytes=found["anonymous_bytes"],
        resident_before=resident,
    )


def evict(folders: Iterable[Path]) -> None:
    """Drops the pages of clean files; needs no rights. The files must have been flushed."""
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


def resident_share(folders: Iterable[Path]) -> float:
    """Share of the files' pages that lie in the page cache (mincore)."""
    num_pages = num_resident = 0
    for file in _opened(folders):
        found = _resident_pages(file)
        num_pages, num_resident = num_pages + found.size, num_resident + int(found.sum())
    return num_resident / num_pages if num_pages else 0.0


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def available_bytes() -> int:
    """Memory that programs and the page cache may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _flush(folder: Path) -> float:
    started = time.perf_counter()
    for file in _opened([folder]):
        os.fsync(file)
    return time.perf_counter() - started


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
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with _open(path) as file:
                    yield file


@contextmanager
def _open(path: Path) -> Generator[int]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
