"""Writes safetensors shards in place: the whole file is reserved first, blocks go to offsets.

Memory is one block per thread. `staging` makes the directory that they are written to an output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cpt_residual.core.disk import FullDiskReport
from cpt_residual.weights.io.direct import Bytes, OutputFile
from cpt_residual.weights.io.shard_header import Shape, TensorEntry
from cpt_residual.weights.maths.arithmetic import Raw
from cpt_residual.weights.maths.dtypes import DtypeName


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
            "data_offsets": [end, end + entry.num_bytes],
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
        self._folder = path.parent
        with FullDiskReport(self._folder, num_bytes):
            self._file = OutputFile(path, num_bytes)
        try:
            self._write_bytes(np.frombuffer(header, dtype=np.uint8), 0)
        except BaseException:
            self._file.close()
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
        self._file.close()

    def flush(self) -> None:
        """Returns when every byte is on the disk."""
        with FullDiskReport(self._folder, 0):
            self._file.flush()

    def write(self, entry: TensorEntry, start: int, values: Raw) -> None:
        """Puts flat `values` at element `start` of the tensor that `entry` describes."""
        self._write_bytes(values.view(np.uint8), entry.offset + start * entry.item_size)

    def write_bytes(self, values: Bytes, offset: int) -> None:
        """Puts raw bytes at `offset` of the file."""
        self._write_bytes(values, offset)

    def _write_bytes(self, values: Bytes, offset: int) -> None:
        with FullDiskReport(self._folder, values.nbytes):
            self._file.write(values, offset)
