"""The files of a pack, and how to open one.

`ids.npy`      uint32 (num_rows, sequence_length): token ids.
`flags.npy`    uint8, same shape: bit 0 segment start, bit 1 loss-bearing label, bit 2 padding,
               bit 3 (only with bit 0) the segment continues a document of an earlier row.
`sources.npy`  uint8 (num_rows,): which of the ledger's `sources` a row is from.
`pack.json`    the ledger (`pack_ledger`).

Rows are in training order. Positions restart at every bit 0; the padding tail is a segment of its
own. The label of token t is t itself (the model shifts). All arrays are little endian, in C order,
readable with numpy alone and from any row on:

    ids, flags = (np.load(name, mmap_mode="r")[row] for name in ("ids.npy", "flags.npy"))
    columns = np.arange(len(ids))
    position_ids = columns - np.maximum.accumulate(np.where(flags & 1, columns, 0))
    labels = np.where(flags & 2, ids.astype(np.int64), -100)

A model that is given these positions, no attention mask and `use_cache=False` attends within
segments only. A document is one segment, or several when it is longer than a row or cut by one:
its parts are in the order of the rows of their source.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from cpt_residual.config.packs import MAX_SOURCES
from cpt_residual.data.packing.pack_ledger import PackLedger, RowMark, read_ledger
from cpt_residual.data.packing.row_counts import RowCounts, SpecialIds
from cpt_residual.data.packing.rows import LOSS, START, Flags, Ids, Row
from cpt_residual.errors import CorruptArtifactError

Int64s = npt.NDArray[np.int64]

IGNORED_LABEL = -100
"""The label that torch's cross entropy leaves out."""

SOURCES_FILE = "sources.npy"
_FILES = ("ids.npy", "flags.npy", SOURCES_FILE)
_DTYPES = ("<u4", "|u1", "|u1")
_BUFFERED_TOKENS = 1 << 18

_REMEDY = "Delete the artifact and run again; it will be rebuilt."


class PackWriter:
    """Writes rows one after the other in constant memory, and counts them; a context manager."""

    def __init__(
        self, out: Path, *, sequence_length: int, num_sources: int, special: SpecialIds
    ) -> None:
        assert num_sources <= MAX_SOURCES, "checked by whoever makes the pack"
        out.mkdir(parents=True, exist_ok=True)
        self._length = sequence_length
        self._special = special
        self._files = [(out / name).open("wb", buffering=0) for name in _FILES]
        self._sha256 = hashlib.sha256()
        capacity = max(_BUFFERED_TOKENS // sequence_length, 2)
        self._ids = np.empty((capacity, sequence_length), dtype="<u4")
        self._flags = np.empty((capacity, sequence_length), dtype=np.uint8)
        self._sources = np.empty(capacity, dtype=np.uint8)
        self._num_tokens = np.empty(capacity, dtype=np.int64)
        self._buffered = 0
        self._written = RowMark(rows=0, tokens=0, sha256=self._sha256.hexdigest())
        self.marks: list[RowMark] = []
        self.counts = [RowCounts() for _ in range(num_sources)]
        self._headers()

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return self._written.rows + self._buffered

    def append(self, row: Row, source: int) -> None:
        """Write one row of source number `source`."""
        if self._buffered == len(self._ids):
            self._write(self._buffered - 1)  # the last row is held back until it is not the last
        place = self._buffered
        self._ids[place] = row.ids
        self._flags[place] = row.flags
        self._sources[place] = source
        self._num_tokens[place] = row.num_tokens
        self._buffered += 1

    def finish(self) -> str:
        """Complete files, counts and marks; returns `rows_sha256`. No row may follow."""
        if self._buffered:
            self._write(self._buffered - 1)
            if self._written.rows and self._written not in self.marks:
                self.marks.append(self._written)
            self._write(1)
            self.marks = [mark for mark in self.marks if mark.rows < self._written.rows]
        self._headers()
        return self._sha256.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.close()

    def _write(self, num_rows: int) -> None:
        """Write the first rows of the buffer."""
        if not num_rows:
            return
        ids, flags = self._ids[:num_rows], self._flags[:num_rows]
        sources = self._sources[:num_rows]
        for file, part in zip(self._files, (ids, flags, sources), strict=True):
            _write_all(file, part.data)
        for source in np.unique(sources).tolist():
            mine = sources == source
            some = (ids, flags) if mine.all() else (ids[mine], flags[mine])
            self.counts[source] += RowCounts.of(*some, self._special)
        self._hash(num_rows)
        kept = slice(num_rows, self._buffered)
        self._buffered -= num_rows
        for buffer in (self._ids, self._flags, self._sources, self._num_tokens):
            buffer[: self._buffered] = buffer[kept]

    def _hash(self, num_rows: int) -> None:
        """Hash the first rows of the buffer, and make a mark at every power of two."""
        first = 0
        while first < num_rows:
            rows = self._written.rows
            to_mark = (1 << rows.bit_length()) - rows
            last = min(first + to_mark, num_rows)
            self._sha256.update(hashed_bytes(self._ids[first:last], self._flags[first:last]))
            self._written = RowMark(
                rows=rows + last - first,
                tokens=self._written.tokens + int(self._num_tokens[first:last].sum()),
                sha256=self._sha256.hexdigest(),
            )
            if last - first == to_mark:  # dropped again by `finish` if it is the last row
                self.marks.append(self._written)
            first = last

    def _headers(self) -> None:
        shape = (self._written.rows, self._length)
        for file, dtype, axes in zip(self._files, _DTYPES, (2, 2, 1), strict=True):
            file.seek(0)
            _write_all(file, _npy_header(dtype, shape[:axes]))


def hashed_bytes(ids: Ids, flags: Flags) -> memoryview:
    """What hashes of rows are over, for ids_BL and flags_BL: row by row its ids, then its flags."""
    num_rows, length = ids.shape
    joined = np.empty((num_rows, 5 * length), dtype=np.uint8)
    joined[:, : 4 * length] = np.ascontiguousarray(ids).astype("<u4", copy=False).view(np.uint8)
    joined[:, 4 * length :] = flags
    return joined.data


def _write_all(file: io.FileIO, content: bytes | memoryview) -> None:
    """An unbuffered write may write a part only."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """A .npy header; numpy leaves room for the first axis to grow, so its length never changes."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    content = header.getvalue()
    assert len(content) == _HEADER_BYTES, "the header of a growing .npy file changed its length"
    return content


_HEADER_BYTES = 128


@dataclass(frozen=True)
class PackView:
    """A pack, memory mapped: opening costs nothing, and every row is equally near.

    Pickles by its path, so data loader workers map the files themselves.
    """

    path: Path
    ids: Ids
    flags: Flags
    row_sources: npt.NDArray[np.uint8]
    ledger: PackLedger

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sequence_length(self) -> int:
        return self.ledger.sequence_length

    def row(self, number: int) -> tuple[Int64s, Int64s, Int64s]:
        """(input_ids_L, position_ids_L, labels_L) of one row; labels are -100 where no loss is.

        Give the model exactly these, no attention mask, and `use_cache=False`: then attention
        stays within each segment.
        """
        ids = np.asarray(self.ids[number]).astype(np.int64)
        flags = np.asarray(self.flags[number])
        columns = np.arange(len(ids), dtype=np.int64)
        starts = np.maximum.accumulate(np.where(flags & START, columns, 0))
        labels = np.where(flags & LOSS, ids, IGNORED_LABEL)
        return ids, columns - starts, labels

    def let_go(self) -> None:
        """What was read of the mapped files need not stay in this process's memory."""
        for array in (self.ids, self.flags):
            mapped = array.base
            if isinstance(mapped, mmap.mmap):
                mapped.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[object, ...]:
        return (open_pack, (self.path,))


def open_pack(path: Path) -> PackView:
    """Map the pack in directory `path` after checking that files, shapes and ledger agree.

    Reads no row. Raises `CorruptArtifactError` with every disagreement, and `CompatibilityError`
    for a pack of another format version.
    """
    ledger = read_ledger(path)
    shape = (ledger.num_rows, ledger.sequence_length)
    problems: list[str] = []
    ids, flags, sources = (
        _map(path / name, np.dtype(dtype), shape[:axes], problems)
        for name, dtype, axes in zip(_FILES, _DTYPES, (2, 2, 1), strict=True)
    )
    if ledger.tokens != ledger.token_budget:
        problems.append(f"pack.json: {ledger.tokens} tokens, but a budget of {ledger.token_budget}")
    if ledger.tokens + ledger.padding != ledger.num_rows * ledger.sequence_length:
        problems.append("pack.json: tokens + padding is not num_rows x sequence_length")
    if problems or ids is None or flags is None or sources is None:
        raise CorruptArtifactError(f"pack {path} is damaged", problems=problems, remedy=_REMEDY)
    return PackView(
        path=path,
        ids=cast("Ids", ids),
        flags=cast("Flags", flags),
        row_sources=cast("Flags", sources),
        ledger=ledger,
    )


def row_hashes(pack: PackView, at: Iterable[int]) -> dict[int, str]:
    """The hash over the first rows, as the ledger's marks have it, for each number of rows in `at`
    that the pack has. Reads these rows once, in constant memory."""
    digest, done = hashlib.sha256(), 0
    step = max(_BUFFERED_TOKENS // pack.sequence_length, 1)
    found: dict[int, str] = {}
    for stop in sorted(rows for rows in set(at) if 0 <= rows <= len(pack)):
        while done < stop:
            part = slice(done, min(done + step, stop))
            digest.update(hashed_bytes(np.asarray(pack.ids[part]), np.asarray(pack.flags[part])))
            done = part.stop
            pack.let_go()
        found[stop] = digest.hexdigest()
    return found


def _map(
    file: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...], problems: list[str]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]] | None:
    if not file.is_file():
        problems.append(f"{file.name}: missing")
        return None
    expected = _HEADER_BYTES + math.prod(shape) * dtype.itemsize
    if file.stat().st_size != expected:
        problems.append(f"{file.name}: {file.stat().st_size} bytes, not {expected}")
        return None
    with file.open("rb") as stream:
        header = _header(stream, file.name, problems)
    wanted = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    if header is None or header != wanted:
        problems.append(f"{file.name}: header {header}, not {wanted}")
        return None
    return np.memmap(file, dtype=dtype, mode="r", offset=_HEADER_BYTES, shape=shape)


def _header(stream: BinaryIO, name: str, problems: list[str]) -> Mapping[str, object] | None:
    try:
        npy_format.read_magic(stream)
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(stream)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return None
    return {"descr": dtype.str, "fortran_order": fortran_order, "shape": shape}
