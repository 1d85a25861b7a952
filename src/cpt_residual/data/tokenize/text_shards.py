"""Shards of documents and the encoding of one shard.

A shard is a run of documents of about the same number of bytes. Where shards are cut decides only
what is encoded at a time, never what comes out.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cpt_residual.data.documents.line_index import LineIndex, Offsets
from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.data.tokenize.document_source import DocumentSource, num_characters
from cpt_residual.data.tokenize.token_cache import TokenBlock, tokens_are_whole, write_tokens

_ENCODING_VERSION = 3
"""Raise it when the same documents give other token files: old ones are then not used again."""

_BATCH_BYTES = 100_000
"""Lines encoded at a time, which bounds memory: encodings take some hundred bytes a token."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Some documents of source number `source`: their numbers and where their lines lie.

    `path`: the token file they shall be in, or None to have them handed over."""

    source: int
    numbers: Offsets
    begins: Offsets
    ends: Offsets
    path: Path | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the lines."""
        return int((self.ends - self.begins).sum())


def cut_into_shards(
    index: LineIndex, order: Offsets, *, source: int, shard_bytes: int
) -> Iterator[Shard]:
    """All documents of `order`; a shard ends with the document that makes it `shard_bytes`.

    Holds nothing but `order`."""
    for first, last in pairwise(_cuts(index, order, shard_bytes)):
        numbers = order[first:last]
        yield Shard(source, numbers, index.begins[numbers], index.ends[numbers])


def _cuts(index: LineIndex, order: Offsets, shard_bytes: int) -> list[int]:
    """Where shards begin in `order`, and its length."""
    grown = np.cumsum(index.sizes[order])
    cuts = [0]
    while (first := cuts[-1]) < len(order):
        before = int(grown[first - 1]) if first else 0
        last = int(np.searchsorted(grown, before + shard_bytes)) + 1
        cuts.append(min(last, len(order)))
    return cuts


class ShardEncoder:
    """Encodes shards of several sources, in any threads. Holds one open file a source.

    `identity`: whose ids they are; token files of another one are not used.
    """

    def __init__(self, sources: Sequence[DocumentSource], identity: str) -> None:
        self._sources = sources
        self._identity = identity
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, shard: Shard) -> bool:
        """Make sure that the shard's token file is there, whole. False: it cannot be made, because
        some documents cannot be used."""
        assert shard.path is not None, "a shard without a place for its tokens"
        key = self._key(shard)
        if tokens_are_whole(shard.path, key=key):
            return True
        block = self.block(shard)
        if block is not None:
            write_tokens(shard.path, block, key=key)
        return block is not None

    def block(self, shard: Shard) -> TokenBlock | None:
        """The shard's documents, encoded; None when some cannot be used."""
        try:
            parts = [self._encoded(shard.source, lines) for lines in self._batches(shard)]
        except BadDocumentError:
            return None
        return TokenBlock.joined(parts)

    def _key(self, shard: Shard) -> str:
        """What the shard's token file answers to: its lines, and how they are encoded."""
        digest = hashlib.sha256(f"{_ENCODING_VERSION}/{self._identity}/{shard.source}".encode())
        digest.update((shard.ends - shard.begins).astype("<i8", copy=False).data)
        for lines in self._batches(shard):
            for line in lines:
                digest.update(line)
        return digest.hexdigest()

    def _encoded(self, number: int, lines: Sequence[bytes]) -> TokenBlock:
        source = self._sources[number]
        documents = [source.parse(line, "") for line in lines]
        characters = [num_characters(document) for document in documents]
        return TokenBlock(source.encode(documents), np.array(characters, dtype=np.int64))

    def _batches(self, shard: Shard) -> Iterator[list[bytes]]:
        """The lines of a shard, bounded in bytes: only a long line is alone in more."""
        file = self._file(shard.source)
        lines: list[bytes] = []
        num_bytes = 0
        for begin, end in zip(shard.begins.tolist(), shard.ends.tolist(), strict=True):
            if lines and num_bytes + end - begin > _BATCH_BYTES:
                yield lines
                lines, num_bytes = [], 0
            lines.append(os.pread(file, end - begin, begin).rstrip(b"\n"))
            num_bytes += end - begin
        if lines:
            yield lines

    def _file(self, source: int) -> int:
        with self._lock:
            if source not in self._files:
                self._files[source] = os.open(self._sources[source].documents, os.O_RDONLY)
            return self._files[source]

    def close(self) -> None:
        """Give the open files back."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
