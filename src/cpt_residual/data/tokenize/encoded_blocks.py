"""Encoded documents of a pack, from this process or from processes that work ahead.

A small pack is encoded here, a batch at a time. A large one is encoded by processes that put
shard after shard into files, some ahead of the assembly; a file that is already there, from a
build that was killed, is used again after it was checked: the same lines, the same encoder, its
own bytes. The documents and their order are the same either way.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Self

from cpt_residual.data.documents.line_index import LineIndex, seeded_order
from cpt_residual.data.tokenize.document_source import DocumentSource
from cpt_residual.data.tokenize.text_shards import Shard, ShardEncoder, cut_into_shards
from cpt_residual.data.tokenize.token_cache import TokenBlock, read_tokens
from cpt_residual.launch.workers import Workers

_BYTES_PER_TOKEN = 4.0
"""Of English and code, roughly: how far to work ahead before anything was counted."""


@dataclass(frozen=True)
class Tokenising:
    """How documents are encoded; never what comes out.

    `num_workers` other processes encode into files below `scratch`, in shards of
    `shard_bytes`: what a kill loses is the shards in work. Without `scratch` it is done in this
    process, which is faster for small packs.
    """

    scratch: Path | None = None
    num_workers: int = 1
    shard_bytes: int = 4_000_000  # about a second of a core
    batch_bytes: int = 500_000  # encoded at a time in this process


@dataclass(frozen=True)
class Reading:
    """How one source is read: in which order, how often, and how much of it."""

    index: LineIndex
    seed: int
    max_epochs: int | None  # None: as often as wanted
    needed_tokens: int


class Supplier:
    """Makes the blocks of all sources; a context manager. `identity`: whose token ids they are."""

    def __init__(
        self,
        sources: Sequence[DocumentSource],
        readings: Sequence[Reading],
        how: Tokenising,
        *,
        identity: str,
    ) -> None:
        self._sources, self._readings, self._how = sources, readings, how
        self._encoder = ShardEncoder(sources, identity)
        self._workers: Workers[Shard, bool] | None = None
        if how.scratch is not None:
            how.scratch.mkdir(parents=True, exist_ok=True)
            self._workers = Workers(
                "tokenizer worker",
                ShardEncoder,
                (sources, _with_encoders(identity, sources)),
                num_workers=how.num_workers,
            )

    def blocks(self) -> list[Blocks]:
        """One stream of encoded documents a source."""
        return [self._blocks_of(number) for number in range(len(self._sources))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._encoder.close()
        if self._workers is not None:
            self._workers.__exit__(*exception)

    def _blocks_of(self, number: int) -> Blocks:
        name, reading, how = self._sources[number].name, self._readings[number], self._how
        if self._workers is None:
            shards = _shards(name, number, reading, how.batch_bytes)
            return Blocks(shards, self._here, needed_tokens=0, ahead=0)
        shards = _shards(name, number, reading, how.shard_bytes, how.scratch)
        return Blocks(
            shards, self._elsewhere, needed_tokens=reading.needed_tokens, ahead=how.num_workers + 2
        )

    def _here(self, shard: Shard) -> Pending:
        return partial(self._encoder.block, shard)

    def _elsewhere(self, shard: Shard) -> Pending:
        assert self._workers is not None
        return partial(_read_when_done, self._workers, self._workers.submit(shard), shard)


Pending = Callable[[], TokenBlock | None]
"""Gives the block of a shard, or None because some of its documents cannot be used."""


def _read_when_done(
    workers: Workers[Shard, bool], future: Future[bool], shard: Shard
) -> TokenBlock | None:
    assert shard.path is not None
    return read_tokens(shard.path) if workers.result(future) else None


def _with_encoders(identity: str, sources: Sequence[DocumentSource]) -> str:
    """`identity` with all that decides which ids a text gets."""
    digest = hashlib.sha256(f"{identity}/tokenizers {version('tokenizers')}".encode())
    for source in sources:
        digest.update(pickle.dumps((source.format, source.encode)))
    return digest.hexdigest()


def _shards(
    name: str, number: int, reading: Reading, shard_bytes: int, folder: Path | None = None
) -> Iterator[tuple[int, Shard]]:
    """(epoch, shard) of one source, for as many epochs as it may have."""
    num_epoch = 0
    while reading.max_epochs is None or num_epoch < reading.max_epochs:
        order = seeded_order(len(reading.index), seed=reading.seed, name=name, epoch=num_epoch)
        shards = cut_into_shards(reading.index, order, source=number, shard_bytes=shard_bytes)
        for position, shard in enumerate(shards):
            path = folder and folder / f"{number}-{num_epoch:04}-{position:06}.tokens"
            yield num_epoch, replace(shard, path=path)
        num_epoch += 1


class Blocks:
    """Encoded documents of one source, block after block.

    begin: starts the work on a shard; up to `ahead` shards are begun before they are asked for, as
    long as their tokens seem to be needed. num_epochs: epochs begun by the blocks given. is_usable:
    False once a block could not be made, because some documents cannot be used.
    """

    def __init__(
        self,
        shards: Iterator[tuple[int, Shard]],
        begin: Callable[[Shard], Pending],
        *,
        needed_tokens: int,
        ahead: int,
    ) -> None:
        self.num_epochs, self.is_usable = 0, True
        self._shards, self._begin = shards, begin
        self._needed_tokens, self._ahead = needed_tokens, ahead
        self._waiting: deque[tuple[int, Shard, Pending]] = deque()
        self._waiting_bytes = self._num_bytes = self._num_tokens = 0

    def next_block(self) -> TokenBlock | None:
        """The next block, or None at the end of the last epoch or where documents are unusable."""
        self._work_ahead()
        if not self._waiting and not self._begin_next():
            return None
        number, shard, finish = self._waiting.popleft()
        self.num_epochs = number + 1
        block = finish()
        self._waiting_bytes -= shard.num_bytes
        self.is_usable = block is not None
        if block is not None:
            self._num_bytes += shard.num_bytes
            self._num_tokens += len(block.documents.ids)
            self._work_ahead()
        return block

    def _work_ahead(self) -> None:
        while len(self._waiting) < self._ahead and self._expected() < self._needed_tokens:
            if not self._begin_next():
                return

    def _expected(self) -> float:
        """Tokens of everything begun."""
        rate = self._num_tokens / self._num_bytes if self._num_bytes else 1 / _BYTES_PER_TOKEN
        return self._num_tokens + self._waiting_bytes * rate

    def _begin_next(self) -> bool:
        """Begin the next shard, if there is one."""
        following = next(self._shards, None)
        if following is None:
            return False
        number, shard = following
        self._waiting.append((number, shard, self._begin(shard)))
        self._waiting_bytes += shard.num_bytes
        return True
