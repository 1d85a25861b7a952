"""Writes safetensors shards in place: the whole file is reserved first, blocks go to offsets.

Memory is one block per thread. `staging` makes the directory that they are written to an output.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cpt_residual.core.disk import FullDiskReport
from cpt_residual.weights.arithmetic import Raw
from cpt_residual.weights.checkpoint import ITEM_SIZES, DtypeName, Shape, TensorEntry
from cpt_residual.weights.reader import bytes_of

_NOT_SUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def layout(
    shard: str,
    tensors: Sequence[tuple[str, DtypeName, Shape]],
    metadata: Mapping[str, str],
) -> tuple[bytes, tuple[TensorEntry, ...]]:
    """The header of a shard that holds `tensors` back to back, and where each then lies."""
    fields: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    sized: list[tuple[TensorEntry, int]] = []
    end = 0
    for name, dtype, shape in tensors:
        entry = TensorEntry(name=name, dtype=dtype, shape=shape, shard=shard, offset=end)
        fields[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [end, end + entry.num_elements * ITEM_SIZES[dtype]],
        }
        sized.append((entry, end))
        end += entry.num_bytes
    raw = json.dumps(fields, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    header = len(raw).to_bytes(8, "little") + raw
    return header, tuple(
        TensorEntry(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            shard=shard,
            offset=len(header) + offset,
        )
        for entry, offset in sized
    )


class ShardWriter:
    """One file of exactly `num_bytes` that starts with `header`; `write` is thread-safe."""

    def __init__(self, path: Path, *, header: bytes, num_bytes: int) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._reserve(num_bytes)
            self._write_bytes(memoryview(header), 0)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; more than once is fine."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def flush(self) -> None:
        """Returns when every byte is on the disk."""
        with FullDiskReport(self._path.parent, 0):
            os.fsync(self._file)

    def write(self, entry: TensorEntry, start: int, values: Raw) -> None:
        """Puts flat `values` at element `start` of the tensor that `entry` describes."""
        self._write_bytes(bytes_of(values), entry.offset + start * entry.item_size)

    def _reserve(self, num_bytes: int) -> None:
        with FullDiskReport(self._path.parent, num_bytes):
            try:
                os.posix_fallocate(self._file, 0, num_bytes)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                os.ftruncate(self._file, num_bytes)

    def _write_bytes(self, raw: memoryview, offset: int) -> None:
        with FullDiskReport(self._path.parent, raw.nbytes):
            while raw.nbytes:
                num_written = os.pwrite(self._file, raw, offset)
                raw, offset = raw[num_written:], offset + num_written
