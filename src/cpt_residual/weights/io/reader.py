"""Reads tensors of safetensors shards in blocks: bounded memory, any number of threads.

A block is a run of at most BLOCK elements of one tensor, flat. Reading goes into buffers and not
through a memory map, so that resident memory stays at a few blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from cpt_residual.core.stage import ProgressReport, no_progress
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.side_files import text_fields
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.direct import InputFile, Scratch
from cpt_residual.weights.io.shard_header import Shard, TensorEntry
from cpt_residual.weights.maths.arithmetic import RAW_DTYPES, Raw

BLOCK = 1 << 18  # elements; a block of every operand stays in the processor's caches
FETCHED = 7 * BLOCK
"""Elements that a thread reads or writes at once: disks like large requests. 3.5 MiB of bf16 and
the pages at both ends fit into two huge pages, and into one request of the usual size (4 MiB)."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Streaming:
    """How a pass over the weights runs; never changes the bytes. Memory: some 16 MB per thread for
    bf16 models, 32 for fp32."""

    progress: ProgressReport = no_progress
    threads: int = 2


DEFAULT_STREAMING = Streaming()


@dataclass(frozen=True)
class Block:
    """Elements start to stop (exclusive) of the flattened tensor `name`."""

    name: str
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        return self.stop - self.start


def blocks_of(entries: Iterable[TensorEntry], block: int | None = None) -> Iterator[Block]:
    """Every element of every entry exactly once, in order. An empty tensor has one empty block."""
    step = BLOCK if block is None else block
    for entry in entries:
        for start in range(0, max(entry.num_elements, 1), step):
            yield Block(entry.name, start, min(start + step, entry.num_elements))


def parts_of(block: Block) -> Iterator[Block]:
    """A run of elements as blocks."""
    for start in range(block.start, max(block.stop, block.start + 1), BLOCK):
        yield Block(block.name, start, min(start + BLOCK, block.stop))


class _Fetched(threading.local):
    """What a thread has fetched: elements `start` on of a tensor."""

    def __init__(self) -> None:
        self.name, self.start = "", 0
        self.values: Raw = np.empty(0, dtype=np.uint8)

    def part(self, entry: TensorEntry, start: int, stop: int) -> Raw | None:
        """Elements start to stop, where they are among the fetched ones."""
        first, last = start - self.start, stop - self.start
        inside = self.name == entry.name and first >= 0 and last <= self.values.size
        return self.values[first:last] if inside else None


class ShardReader:
    """Open shards; may be used by several threads. `once`: no element is read a second time, so
    large shards need not go through the page cache."""

    def __init__(self, shards: Sequence[Shard], *, once: bool = True) -> None:
        self._shards, self._once = shards, once
        self._files: dict[str, InputFile] = {}
        self._stack = ExitStack()
        self._scratch, self._fetched = Scratch(), _Fetched()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for shard in self._shards:
                file = InputFile(shard.path, shard.num_bytes, once=self._once)
                stack.callback(file.close)
                self._files[shard.name] = file
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read_whole(self, entry: TensorEntry) -> Raw:
        """One tensor's raw elements (see arithmetic.Raw), in its shape."""
        return self.read(entry, 0, entry.num_elements).reshape(entry.shape)

    def read(self, entry: TensorEntry, start: int, stop: int) -> Raw:
        """Raw elements start to stop of the flattened tensor."""
        values = np.empty(stop - start, dtype=RAW_DTYPES[entry.dtype])
        offset = entry.offset + start * entry.item_size
        num_read = self._files[entry.shard].read_into(bytes_of(values), offset)
        return _complete(values, entry, offset, num_read)

    def fetch(self, entry: TensorEntry, start: int, stop: int) -> Raw:
        """As `read_reusing`; parts of it that this thread then asks for are not read again."""
        fetched = self._fetched
        fetched.name = ""
        fetched.values = self.read_reusing(entry, start, stop)
        fetched.name, fetched.start = entry.name, start
        return fetched.values

    def read_reusing(self, entry: TensorEntry, start: int, stop: int) -> Raw:
        """As `read`, into memory that this thread's next call for other elements overwrites: fresh
        memory costs as much as reading from the page cache."""
        part = self._fetched.part(entry, start, stop)
        if part is not None:
            return part
        self._fetched.name = ""
        offset, dtype = entry.offset + start * entry.item_size, RAW_DTYPES[entry.dtype]
        room = self._scratch.room(offset, (stop - start) * entry.item_size)
        num_read = self._files[entry.shard].read(room)
        if offset % entry.item_size:
            room = room._replace(values=room.values.copy())
        return _complete(room.values.view(dtype), entry, offset, num_read)


def _complete(values: Raw, entry: TensorEntry, offset: int, num_read: int) -> Raw:
    if num_read < values.nbytes:
        raise ArtifactError(
            f"{entry.shard} ended inside {entry.name} at byte {offset + num_read}",
            remedy="The file was cut while it was being read. Restore it and run again.",
        )
    return values


def bytes_of(values: Raw) -> memoryview:
    """The memory of a flat contiguous array, shared, not copied."""
    return values.view(np.uint8).data


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int
) -> Generator[Result]:
    """function(item) for every item, computed by threads, yielded in the items' order.

    At most two items per thread are in work or waiting, so memory does not grow with the input.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def require_finite(broken: Iterable[str]) -> None:
    """Raises CompatibilityError that lists tensors with NaN or Inf; `broken` are ready lines."""
    problems = list(dict.fromkeys(broken))
    if problems:
        raise CompatibilityError(
            f"{len(problems)} tensor(s) hold values that are not finite numbers",
            problems=problems,
            remedy="Nothing was written: NaN or Inf would spread into every result. "
            "Use a model whose weights are all finite.",
        )


def same_bytes(reader: ShardReader, left: TensorEntry, right: TensorEntry, *, threads: int) -> bool:
    """Whether two tensors have one shape, one dtype and the same bytes."""

    def same(block: Block) -> bool:
        one, other = (reader.read(each, block.start, block.stop) for each in (left, right))
        return np.array_equal(one.view(np.uint8), other.view(np.uint8))

    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return all(map_in_order(same, blocks_of([left]), threads=threads))


def require_equal_aliases(checkpoint: Checkpoint, *, threads: int) -> None:
    """Refuses a model whose config ties tensors that are stored with different values, or that
    cannot be told."""
    tied = text_fields(checkpoint.config).get("tie_word_embeddings") is True
    checkpoint.class_names.require_known_ties(checkpoint.role, tied=tied)
    problems: list[str] = []
    with ShardReader(checkpoint.shards if checkpoint.aliases else ()) as reader:
        for alias, owner in checkpoint.aliases.items():
            left, right = checkpoint.tensors[alias], checkpoint.tensors[owner]
            if (left.shape, left.dtype) != (right.shape, right.dtype):
                problems.append(f"{alias} {left.dtype} {left.shape} vs {right.dtype} {right.shape}")
            elif not same_bytes(reader, left, right, threads=threads):
                problems.append(f"{alias} is stored with other values than {owner}")
    if problems:
        raise CompatibilityError(
            f"{checkpoint.role}: config.json says tie_word_embeddings, the weights do not",
            problems=problems,
            remedy="Loading would silently drop one of them. Set tie_word_embeddings to false, "
            "or save the model again.",
        )
