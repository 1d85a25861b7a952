"""The copy limit of `weights.py`: read every byte of several file sets, write those of the first.

    python -I -S weights_copy.py cached|direct|cached-direct THREADS BLOCK_BYTES NAMES SETS OUTS

NAMES, SETS and OUTS are lists with one item per line: the files' names, the folders that are read,
the folders (made here) that each get a copy of the first set. Nothing is computed. A process of
its own with few imports, so that it costs what the disk and the memory cost: threads that read into
reused buffers in huge pages and write into files reserved beforehand. Each written file is flushed
to the disk as soon as it is complete, while other threads go on. `direct` goes past the page cache
(O_DIRECT), `cached-direct` only when it writes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator

HUGE_PAGE = 2 << 20  # bytes


class Copy:
    """Open files, and the blocks that are still to be copied."""

    def __init__(
        self, names: list[str], sets: list[str], outs: list[str], block: int, modes: list[int]
    ) -> None:
        flags = os.O_RDONLY | modes[0]
        self.sources = [[os.open(f"{s}/{name}", flags) for s in sets] for name in names]
        for out in outs:
            os.makedirs(out)  # noqa: PTH103 - pathlib takes longer to import than this to run
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | modes[-1]
        self.targets = [[os.open(f"{o}/{name}", flags, 0o644) for o in outs] for name in names]
        self.sizes = [os.fstat(files[0]).st_size for files in self.sources]
        for files, targets, size in zip(self.sources, self.targets, self.sizes, strict=True):
            if any(os.fstat(file).st_size != size for file in files):
                sys.exit("the file sets differ in size")
            for target in targets:
                os.posix_fallocate(target, 0, size)
        self.block = block
        self.num_left = [-(-size // block) for size in self.sizes]
        self.blocks = self.all_blocks()
        self.lock = threading.Lock()

    def all_blocks(self) -> Iterator[tuple[int, int]]:
        for number, size in enumerate(self.sizes):
            for offset in range(0, size, self.block):
                yield number, offset

    def work(self) -> None:
        """Copies blocks until there are none; runs in each thread with buffers of its own."""
        buffers = [huge_pages(self.block) for _ in self.sources[0]]
        while True:
            with self.lock:
                number, offset = next(self.blocks, (-1, 0))
            if number < 0:
                return
            size = min(self.block, self.sizes[number] - offset)
            pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            for source, buffer in zip(self.sources[number], buffers, strict=True):
                read_fully(source, buffer[:pages], offset)
            for target in self.targets[number]:
                write_fully(target, buffers[0][:pages], offset)
            with self.lock:
                self.num_left[number] -= 1
                complete = self.num_left[number] == 0
            if complete:
                for target in self.targets[number]:
                    os.ftruncate(target, self.sizes[number])  # the last page was a whole one
                    os.fsync(target)


def huge_pages(num_bytes: int) -> memoryview:
    """Memory in huge pages where the system has them: a virtual disk takes a megabyte in one piece
    in less than half the time that it needs for 256."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, num_bytes + 2 * HUGE_PAGE, flags=kind)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    return memoryview(memory)[start : start + num_bytes]


def read_fully(file: int, buffer: memoryview, offset: int) -> None:
    while buffer.nbytes:
        count = os.preadv(file, [buffer], offset)
        buffer, offset = buffer[count:], offset + count
        if count % mmap.PAGESIZE or not count:  # the end of the file
            return


def write_fully(file: int, buffer: memoryview, offset: int) -> None:
    while buffer.nbytes:
        count = os.pwrite(file, buffer, offset)
        buffer, offset = buffer[count:], offset + count


def main() -> None:
    modes = [os.O_DIRECT if word == "direct" else 0 for word in sys.argv[1].split("-")]
    num_threads, block = int(sys.argv[2]), int(sys.argv[3])
    names, sets, outs = (argument.split("\n") for argument in sys.argv[4:7])
    copy = Copy(names, sets, outs, block, modes)
    threads = [threading.Thread(target=copy.work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(copy.num_left):
        sys.exit("a thread failed")


if __name__ == "__main__":
    main()
