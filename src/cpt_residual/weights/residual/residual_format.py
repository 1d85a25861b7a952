"""The residual on disk: fp32 shards, sparse corrections, residual.json, the instruct side.

residual-00001-of-00002.safetensors   instruct's shard layout, tied tensors once; fp32, or bf16, or
                                      two factors of low rank, `NAME.left` and `NAME.right`;
                                      `NAME.base_mean` where instruct has tokens of its own
corrections.safetensors               only where fp32 is not exact: `index` I64, `value` F32,
                                      runs per tensor as residual.json says
residual.json                         this file's models
instruct/                             tokenizer, chat template, config, generation config
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.config.merging import Storage
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.class_names import ClassNames
from cpt_residual.modeling.known_layouts import class_names
from cpt_residual.modeling.side_files import CONFIG_FILE, read_json_object
from cpt_residual.weights.io.checkpoint import ModelFacts
from cpt_residual.weights.io.file_hash import file_sha256
from cpt_residual.weights.io.reader import Block, map_in_order
from cpt_residual.weights.io.shard_header import Shape, Shard, TensorEntry, read_shard
from cpt_residual.weights.maths.arithmetic import NO_CORRECTIONS, Corrections
from cpt_residual.weights.maths.dtypes import DtypeName

MANIFEST_FILE = "residual.json"
CORRECTIONS_FILE = "corrections.safetensors"
INSTRUCT_FOLDER = "instruct"
LEFT, RIGHT = ".left", ".right"
BASE_MEAN = ".base_mean"


class ModelRecord(Frozen):
    """One of the two models: its shards' sha256 by file name and the ids that end its text; their
    tokens as well where the two have different token maps."""

    shards: dict[str, str]
    eos_token_ids: list[int]
    eos_tokens: list[str] | None = None


class TensorRecord(Frozen):
    """One tensor. Norms are Euclidean; see `arithmetic.Proof` for the proof's fields.

    dtype: of what is stored. rank: of the two factors that stand for it, None when it is stored
    whole. relative_error: norm(stored - exact) / norm(exact), measured; 0 with bit_exact.
    """

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
    dtype: DtypeName = "F32"
    rank: int | None = None
    relative_error: float = 0.0


class ResidualManifest(Frozen):
    """residual.json: theta_instruct - theta_base (Jindal et al. 2024, eq. 1) and its proof.

    storage: as asked for. bit_exact: base + residual (+ corrections), rounded once, has instruct's
    bits in every tensor. num_rounded: elements that need a correction; max_ulps: their largest
    error without it. num_wrong: elements that base + residual does not give back (0 with fp32).
    relative_error: norm(stored - exact) / norm(exact) over all. instruct_only: rows of the
    vocabulary tensors that base does not have; they are instruct's own. notes: on tensors that were
    left out or go by another name (see matching.notes_on). files: sha256 of the
    shards and the corrections. left_out: what lies beside instruct's weights and is not carried.
    """

    format: Literal["cpt_residual.residual"] = "cpt_residual.residual"
    format_version: Literal[2] = 2
    storage: Storage
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
    num_wrong: int
    relative_error: float
    instruct_only: list[int] = Field(default_factory=list[int])
    notes: list[str] = Field(default_factory=list[str])
    files: dict[str, str]
    left_out: list[str] = Field(default_factory=list[str])
    tensors: dict[str, TensorRecord]


@dataclass(frozen=True)
class ResidualArtifact:
    """An opened residual directory; weights are not read yet."""

    path: Path
    manifest: ResidualManifest
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]
    correction_index: npt.NDArray[np.int64]
    correction_start: int

    @property
    def instruct_folder(self) -> Path:
        return self.path / INSTRUCT_FOLDER

    @property
    def config(self) -> dict[str, JsonValue]:
        """Instruct's config.json."""
        return read_json_object(self.instruct_folder / CONFIG_FILE, "residual")

    @cached_property
    def class_names(self) -> ClassNames:
        """How instruct's class reads the tensors; its text part where there is nothing else."""
        found = class_names(
            self.instruct_folder,
            self.manifest.tensors,
            model_type=self.manifest.facts.model_type,
            tied=self.manifest.facts.tie_word_embeddings,
        )
        is_text = bool(found.text) and set(found.names.values()) <= found.text.keys()
        return found.text_part() if is_text else found

    def corrections(self, block: Block) -> Corrections:
        """The corrections of one block, with indices that count from the block's start."""
        record = self.manifest.tensors[block.name]
        stop = record.corrections_start + record.num_rounded
        index = self.correction_index[record.corrections_start : stop]
        low, high = (int(at) for at in np.searchsorted(index, [block.start, block.stop]))
        first, count = record.corrections_start + low, high - low
        if not count:
            return NO_CORRECTIONS
        file, data_start, num_all = (
            self.path / CORRECTIONS_FILE,
            self.correction_start,
            len(self.correction_index),
        )
        # Read, not mapped: mapped pages would stay resident, as many as there are corrections.
        found = np.fromfile(file, np.int64, count, offset=data_start + 8 * first)
        value = np.fromfile(file, np.float32, count, offset=data_start + 8 * num_all + 4 * first)
        return Corrections(index=found - block.start, value=value)


def open_residual(path: Path) -> ResidualArtifact:
    """The residual in `path`, its shards and corrections checked against residual.json."""
    try:
        manifest = ResidualManifest.model_validate(
            read_json_object(path / MANIFEST_FILE, "residual")
        )
    except ValidationError as error:
        raise ArtifactError(
            f"{path / MANIFEST_FILE} is not a residual of this version",
            problems=field_problems(error),
            remedy="Compute the residual again.",
        ) from error
    names = sorted({record.shard for record in manifest.tensors.values()})
    shards = tuple(read_shard(path / name) for name in names)
    tensors = {entry.name: entry for shard in shards for entry in shard.tensors}
    means = {name.removesuffix(BASE_MEAN) for name in tensors if name.endswith(BASE_MEAN)}
    expected = dict(
        piece
        for name, record in manifest.tensors.items()
        for piece in stored_as(name, record, with_mean=name in means)
    )
    found = {name: (entry.shard, entry.dtype, entry.shape) for name, entry in tensors.items()}
    problems = [
        f"{name}: {MANIFEST_FILE} and the shards disagree"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    index, start = _open_corrections(path, manifest.num_rounded)
    if len(index) != manifest.num_rounded:
        problems.append(f"{CORRECTIONS_FILE}: {len(index)} entries, not {manifest.num_rounded}")
    if bool(means) != bool(manifest.instruct_only):
        problems.append(f"{len(means)} mean rows, {len(manifest.instruct_only)} rows of instruct")
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
        correction_start=start,
    )


def stored_as(
    name: str, record: TensorRecord, *, with_mean: bool
) -> Iterator[tuple[str, tuple[str, DtypeName, Shape]]]:
    """The tensors of the shards that stand for one tensor: name, (shard, dtype, shape).

    `with_mean`: it has one row per token, and base's mean row comes with it."""
    if with_mean:
        yield name + BASE_MEAN, (record.shard, "F32", record.shape[1:])
    if record.rank is None:
        yield name, (record.shard, record.dtype, record.shape)
        return
    rows, columns = record.shape
    yield name + LEFT, (record.shard, record.dtype, (rows, record.rank))
    yield name + RIGHT, (record.shard, record.dtype, (record.rank, columns))


def require_intact(artifact: ResidualArtifact, *, threads: int) -> None:
    """ArtifactError unless every file has the sha256 that residual.json recorded. One read."""
    recorded = artifact.manifest.files
    hashes = map_in_order(
        lambda name: file_sha256(artifact.path / name), list(recorded), threads=threads
    )
    problems = [
        f"{name}: sha256 {found}, recorded {recorded[name]}"
        for name, found in zip(recorded, hashes, strict=True)
        if found != recorded[name]
    ]
    if problems:
        raise ArtifactError(
            f"The residual {artifact.path} is not what was written",
            problems=problems,
            remedy="Its files were changed or damaged. Compute the residual again.",
        )


class CorrectionsWriter:
    """Spools corrections to two scratch files and joins them, so that memory stays bounded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = (folder / ".correction_index", folder / ".correction_value")
        self._files = tuple(part.open("wb") for part in self._parts)
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def append(self, corrections: Corrections, *, offset: int) -> None:
        """Adds one block's corrections; `offset` is the block's first element in its tensor."""
        if corrections.count:
            self._files[0].write((corrections.index + offset).tobytes())
            self._files[1].write(corrections.value.tobytes())
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


def _open_corrections(path: Path, count: int) -> tuple[npt.NDArray[np.int64], int]:
    """The indices, mapped for searching, and where the file's data begins."""
    file = path / CORRECTIONS_FILE
    if not file.is_file():
        return np.empty(0, dtype=np.int64), 0
    with file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
    if file.stat().st_size != start + 12 * count:
        return np.empty(0, dtype=np.int64), 0
    return np.memmap(file, dtype=np.int64, mode="r", offset=start, shape=(count,)), start
