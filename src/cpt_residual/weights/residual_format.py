"""The residual on disk: fp32 shards, sparse corrections, residual.json, the instruct side.

residual-00001-of-00002.safetensors   fp32, instruct's shard layout, tied tensors once
corrections.safetensors               only where fp32 is not exact: `index` I64, `value` F32,
                                      runs per tensor as residual.json says
residual.json                         this file's models
instruct/                             tokenizer, chat template, config, generation config
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from cpt_residual.config.schema import Frozen
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import read_json_object
from cpt_residual.weights.arithmetic import Corrections
from cpt_residual.weights.checkpoint import (
    DtypeName,
    ModelFacts,
    Shape,
    Shard,
    TensorEntry,
    read_shard,
)
from cpt_residual.weights.reader import Block

MANIFEST_FILE = "residual.json"
CORRECTIONS_FILE = "corrections.safetensors"
INSTRUCT_FOLDER = "instruct"


class ModelRecord(Frozen):
    """One of the two models: its shards' sha256 by file name and the ids that end its text."""

    shards: dict[str, str]
    eos_token_ids: list[int]


class TensorRecord(Frozen):
    """One tensor. Norms are Euclidean; see `arithmetic.Proof` for the proof's fields."""

    shard: str
    shape: Shape
    base_dtype: DtypeName
    instruct_dtype: DtypeName
    base_norm: float
    instruct_norm: float
    residual_norm: float
    bit_exact: bool
    num_rounded: int
    max_ulps: int
    num_zero_signs: int
    corrections_start: int


class ResidualManifest(Frozen):
    """residual.json: theta_instruct - theta_base (Jindal et al. 2024, eq. 1) and its proof.

    bit_exact: base + residual (+ corrections), rounded once, has instruct's bits in every tensor.
    num_rounded: elements that need a correction; max_ulps: their largest error without it.
    """

    format: Literal["cpt_residual.residual"] = "cpt_residual.residual"
    format_version: Literal[1] = 1
    facts: ModelFacts
    token_map_hash: str
    num_parameters: int
    base: ModelRecord
    instruct: ModelRecord
    tied: dict[str, str]
    base_norm: float
    instruct_norm: float
    residual_norm: float
    cosine_base_residual: float | None
    bit_exact: bool
    num_rounded: int
    max_ulps: int
    num_zero_signs: int
    tensors: dict[str, TensorRecord]


@dataclass(frozen=True)
class ResidualArtifact:
    """An opened residual directory; weights are not read yet."""

    path: Path
    manifest: ResidualManifest
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]
    correction_index: npt.NDArray[np.int64]
    correction_value: npt.NDArray[np.float32]

    @property
    def instruct_folder(self) -> Path:
        return self.path / INSTRUCT_FOLDER

    def corrections(self, block: Block) -> Corrections:
        """The corrections of one block, with indices that count from the block's start."""
        record = self.manifest.tensors[block.name]
        stop = record.corrections_start + record.num_rounded
        index = self.correction_index[record.corrections_start : stop]
        low, high = (int(at) for at in np.searchsorted(index, [block.start, block.stop]))
        value = self.correction_value[
            record.corrections_start + low : record.corrections_start + high
        ]
        return Corrections(
            index=torch.tensor(index[low:high] - block.start),
            value=torch.tensor(value),
        )


def open_residual(path: Path) -> ResidualArtifact:
    """The residual in `path`, its shards and corrections checked against residual.json."""
    try:
        manifest = ResidualManifest.model_validate(
            read_json_object(path / MANIFEST_FILE, "residual")
        )
    except ValidationError as error:
        raise ArtifactError(
            f"{path / MANIFEST_FILE} is not a residual of this version",
            problems=[
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            ],
            remedy="Compute the residual again.",
        ) from error
    names = sorted({record.shard for record in manifest.tensors.values()})
    shards = tuple(read_shard(path / name) for name in names)
    tensors = {entry.name: entry for shard in shards for entry in shard.tensors}
    problems = [
        f"{name}: {MANIFEST_FILE} and the shards disagree"
        for name in sorted(tensors.keys() | manifest.tensors.keys())
        if not _agree(tensors.get(name), manifest.tensors.get(name))
    ]
    index, value = _open_corrections(path, manifest.num_rounded)
    if len(index) != manifest.num_rounded:
        problems.append(f"{CORRECTIONS_FILE}: {len(index)} entries, not {manifest.num_rounded}")
    if problems:
        raise ArtifactError(
            f"The residual {path} cannot be trusted",
            problems=problems,
            remedy="Compute the residual again.",
        )
    return ResidualArtifact(
        path=path,
        manifest=manifest,
        shards=shards,
        tensors=tensors,
        correction_index=index,
        correction_value=value,
    )


class CorrectionsWriter:
    """Spools corrections to two scratch files and joins them, so that memory stays bounded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = (folder / ".correction_index", folder / ".correction_value")
        self._files = tuple(part.open("wb") for part in self._parts)
        self.count = 0

    def append(self, corrections: Corrections, *, offset: int) -> None:
        """Adds one block's corrections; `offset` is the block's first element in its tensor."""
        if corrections.count:
            self._files[0].write((corrections.index + offset).numpy().tobytes())
            self._files[1].write(corrections.value.numpy().tobytes())
            self.count += corrections.count

    def finish(self) -> None:
        """Writes corrections.safetensors, or nothing when there are none."""
        for file in self._files:
            file.close()
        if self.count:
            spans = (0, 8 * self.count, 12 * self.count)
            fields = {
                "index": {"dtype": "I64", "shape": [self.count], "data_offsets": spans[:2]},
                "value": {"dtype": "F32", "shape": [self.count], "data_offsets": spans[1:]},
            }
            raw = json.dumps(fields, separators=(",", ":")).encode()
            raw += b" " * (-len(raw) % 8)
            with (self._folder / CORRECTIONS_FILE).open("wb") as file:
                file.write(len(raw).to_bytes(8, "little") + raw)
                for part in self._parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
        for part in self._parts:
            part.unlink()


def _open_corrections(
    path: Path, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    file = path / CORRECTIONS_FILE
    if not file.is_file():
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    with file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
    if file.stat().st_size != start + 12 * count:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    index = np.memmap(file, dtype=np.int64, mode="r", offset=start, shape=(count,))
    value = np.memmap(file, dtype=np.float32, mode="r", offset=start + 8 * count, shape=(count,))
    return index, value


def _agree(entry: TensorEntry | None, record: TensorRecord | None) -> bool:
    if entry is None or record is None:
        return False
    return (entry.dtype, entry.shape, entry.shard) == ("F32", record.shape, record.shard)
