"""The files of a pack, and how to open one.

`ids.npy`    uint32 (num_rows, sequence_length): token ids.
`flags.npy`  uint8, same shape: bit 0 segment start, bit 1 loss-bearing label, bit 2 padding,
             bit 3 (column 0 only) the segment continues a document of an earlier row.
`pack.json`  the ledger.

Rows are in training order. Positions restart at every bit 0; the padding tail is a segment of its
own. The label of token t is t itself (the model shifts). All three are readable with numpy alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format
from pydantic import BaseModel, ConfigDict, ValidationError

from cpt_residual.core.files import write_json_atomic
from cpt_residual.data.rows import LOSS, PADDING, START, Flags, Ids, Row
from cpt_residual.errors import CorruptArtifactError

__all__ = [
    "IGNORED_LABEL",
    "PackLedger",
    "PackView",
    "PackWriter",
    "SourceLedger",
    "open_pack",
    "write_ledger",
]

Int64s = npt.NDArray[np.int64]

IGNORED_LABEL = -100
"""The label that torch's cross entropy leaves out."""

_REMEDY = "Delete the artifact and run again; it will be rebuilt."


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceLedger(_Frozen):
    """Where the tokens of one source went.

    tokens_read = tokens + tokens_cut + tokens_left_over, and tokens = loss_tokens +
    masked_tokens. Documents, characters and tokens "read" count every pass over the source.
    """

    corpus: str
    format: str
    share: float
    documents_available: int
    documents_read: int
    characters_read: int
    tokens_read: int
    passes: int
    rows: int
    documents: int  # documents that begin in the pack
    tokens: int
    loss_tokens: int
    masked_tokens: int
    bos_tokens: int
    eos_tokens: int
    padding: int
    continuations: int  # rows that begin inside a document
    tokens_cut: int  # of the last row, beyond the budget
    tokens_left_over: int  # read, but in no row: the rest of a document, or rows not needed


class PackLedger(_Frozen):
    """Counts over the whole pack; `tokens` equals `token_budget` exactly."""

    format_version: int
    num_rows: int
    sequence_length: int
    token_budget: int
    tokens: int
    loss_tokens: int
    padding: int
    repeat: bool
    seed: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    tokenizer_map_hash: str
    rows_sha256: str  # over every row's ids (little endian), then its flags, in order
    sources: tuple[SourceLedger, ...]


class PackWriter:
    """Writes rows one after the other in constant memory; a context manager."""

    def __init__(self, out: Path, *, sequence_length: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._length = sequence_length
        self._ids = (out / "ids.npy").open("wb", buffering=1 << 20)
        self._flags = (out / "flags.npy").open("wb", buffering=1 << 20)
        self._sha256 = hashlib.sha256()
        self.num_rows = 0
        self._headers()

    def append(self, row: Row) -> None:
        """Write one row."""
        ids, flags = row.ids.astype("<u4", copy=False).tobytes(), row.flags.tobytes()
        self._ids.write(ids)
        self._flags.write(flags)
        self._sha256.update(ids)
        self._sha256.update(flags)
        self.num_rows += 1

    def finish(self) -> str:
        """Complete the headers; returns `rows_sha256`. No row may follow."""
        self._headers()
        return self._sha256.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ids.close()
        self._flags.close()

    def _headers(self) -> None:
        for file, descr in ((self._ids, "<u4"), (self._flags, "|u1")):
            file.seek(0)
            file.write(_npy_header(descr, (self.num_rows, self._length)))


def _npy_header(descr: str, shape: tuple[int, int]) -> bytes:
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

    def num_tokens(self, number: int) -> int:
        """Real tokens of one row (padding excluded)."""
        flags = np.asarray(self.flags[number])
        return int(np.count_nonzero((flags & PADDING) == 0))

    def __reduce__(self) -> tuple[object, ...]:
        return (open_pack, (self.path,))


def open_pack(path: Path) -> PackView:
    """Map the pack in directory `path` after checking that files, shapes and ledger agree.

    Reads no row. Raises `CorruptArtifactError` with every disagreement.
    """
    ledger = _read_ledger(path)
    shape = (ledger.num_rows, ledger.sequence_length)
    problems: list[str] = []
    ids = _map(path / "ids.npy", np.dtype("<u4"), shape, problems)
    flags = _map(path / "flags.npy", np.dtype("|u1"), shape, problems)
    if ledger.tokens != ledger.token_budget:
        problems.append(f"pack.json: {ledger.tokens} tokens, but a budget of {ledger.token_budget}")
    if ledger.tokens + ledger.padding != ledger.num_rows * ledger.sequence_length:
        problems.append("pack.json: tokens + padding is not num_rows x sequence_length")
    if problems or ids is None or flags is None:
        raise CorruptArtifactError(f"pack {path} is damaged", problems=problems, remedy=_REMEDY)
    return PackView(path=path, ids=cast("Ids", ids), flags=cast("Flags", flags), ledger=ledger)


def write_ledger(out: Path, ledger: PackLedger) -> None:
    """Write `pack.json`."""
    write_json_atomic(out / "pack.json", ledger)


def _read_ledger(path: Path) -> PackLedger:
    try:
        return PackLedger.model_validate_json((path / "pack.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise CorruptArtifactError(
            f"pack {path} has no readable ledger", problems=[f"pack.json: {error}"], remedy=_REMEDY
        ) from error


def _map(
    file: Path, dtype: np.dtype[np.generic], shape: tuple[int, int], problems: list[str]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]] | None:
    if not file.is_file():
        problems.append(f"{file.name}: missing")
        return None
    expected = _HEADER_BYTES + shape[0] * shape[1] * dtype.itemsize
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
