"""One shard of a merge, for every output that lacks it: its files, its sums, and their flushing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Self

import numpy as np

from cpt_residual.weights.io.output_dir import OutputFolder
from cpt_residual.weights.io.reader import FETCHED, Block, blocks_of, require_finite
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.io.writer import ShardWriter
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.merge.vocab_rules import OutputShard


def runs_of(entry: TensorEntry) -> Iterator[Block]:
    """What is read and written at once."""
    return blocks_of([entry], FETCHED)


@dataclass
class ShardWork:
    """A shard, and the outputs that lack it. Results are added in the order of the elements."""

    shard: OutputShard
    alphas: Sequence[float]
    folders: Sequence[OutputFolder]
    writers: list[ShardWriter] = field(default_factory=list[ShardWriter])
    sums: list[MergeSums] = field(default_factory=list[MergeSums])
    _broken: list[str] = field(default_factory=list[str])
    _num_added: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_elements(self) -> int:
        return sum(entry.num_elements for entry in self.shard.tensors)

    @cached_property
    def _num_runs(self) -> int:
        return sum(1 for entry in self.shard.tensors for _ in runs_of(entry))

    def open(self, stack: ExitStack) -> None:
        """Makes the files, at the first of many calls; `stack` closes them, whatever comes."""
        with self._lock:
            for folder in self.folders[len(self.writers) :]:
                path = folder.start(self.shard.name)
                writer = ShardWriter(path, header=self.shard.header, num_bytes=self.shard.num_bytes)
                self.sums.append(MergeSums())
                self.writers.append(stack.enter_context(writer))
                carry(self.shard, writer)

    def add(self, sums: Sequence[Sequence[MergeSums]], broken: Sequence[str]) -> bool:
        """Takes what the next run gave: for each output the sums of its blocks (nothing for a tied
        copy), and lines on values that are not finite. Whether that was the shard's last run.

        Raises CompatibilityError at its end when there are such values."""
        for number, parts in enumerate(sums):
            self.sums[number] = reduce(MergeSums.plus, parts, self.sums[number])
        self._broken.extend(broken)
        self._num_added += 1
        complete = self._num_added == self._num_runs
        if complete:
            require_finite(self._broken)
        return complete


def carry(shard: OutputShard, writer: ShardWriter) -> None:
    """Copies what the target's class does not read."""
    if not shard.carried:
        return
    with shard.source.open("rb") as source:
        for stored, place in shard.carried:
            source.seek(stored.offset)
            for start in range(0, stored.num_bytes, FETCHED):
                piece = source.read(min(FETCHED, stored.num_bytes - start))
                writer.write_bytes(np.frombuffer(piece, dtype=np.uint8), place.offset + start)


class Flusher:
    """Waits in the background until finished files are on the disk, and records them, while others
    read and compute."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # what is complete is recorded, whatever came after

    def complete(self, work: ShardWork) -> None:
        """Flushes the files of a finished shard, closes them, and records them. Raises what went
        wrong with an earlier one."""
        for earlier in self._pending:
            if earlier.done():
                earlier.result()

        def finish() -> None:
            for folder, writer, sums in zip(work.folders, work.writers, work.sums, strict=True):
                with writer:
                    writer.flush()
                folder.complete(work.shard.name, sums)

        self._pending.append(self._pool.submit(finish))

    def wait(self) -> None:
        """Returns when all is done; raises the first error."""
        for future in self._pending:
            future.result()
