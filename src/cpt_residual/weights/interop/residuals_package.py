"""The folder layout of the `residuals` package (0.3.2 on PyPI), read and written.

model.safetensors        instruct - base by parameter name (or shards with
                         model.safetensors.index.json); tied tensors are stored twice
config.json              its `ResidualsConfig`: unknown keys make that package fail, so what is
                         ours lies in cpt_residual.json
tokenizer files          instruct's, required by that package
instruct/                ours: instruct's config and generation config beside its tokenizer

That package subtracts and adds in the dtype that models are loaded in, rounds each time, and keeps
no proof, no token map and no end-of-text ids.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    carry_tokenizer,
    forget_code,
    read_json_object,
)
from cpt_residual.weights import arithmetic
from cpt_residual.weights.arithmetic import to_float64
from cpt_residual.weights.chat_contract import copy_instruct_side
from cpt_residual.weights.checkpoint import INDEX_FILE, SINGLE_FILE, ModelFacts
from cpt_residual.weights.delta import StoredDelta
from cpt_residual.weights.reader import (
    DEFAULT_STREAMING,
    Block,
    Streaming,
    blocks_of,
    map_in_order,
    require_finite,
)
from cpt_residual.weights.residual_format import (
    INSTRUCT_FOLDER,
    ModelRecord,
    ResidualArtifact,
)
from cpt_residual.weights.shard_header import (
    ITEM_SIZES,
    TORCH_NAMES,
    DtypeName,
    Shape,
    Shard,
    TensorEntry,
    read_shard,
)
from cpt_residual.weights.staging import fresh_directory
from cpt_residual.weights.writer import ShardWriter, layout

Model = TypeVar("Model", bound=BaseModel)
OWN_FILE = "cpt_residual.json"
_TAGS = ["residuals", "delta", "task-arithmetic", "finetune"]
_README = """---
library_name: residuals
tags: [residuals, delta, task-arithmetic]
---

# Instruction residual

instruct - base of every parameter, in the layout of the `residuals` package
(`Residuals.from_pretrained`), written by cpt_residual. `cpt_residual.json` records both models'
hashes and what rounding has cost; `instruct/` has the configuration of the instruct model.
"""


class PackageConfig(Frozen):
    """config.json of the `residuals` package, whole: a key that is not here is refused."""

    residuals_version: Literal["1.0"] = "1.0"
    format: Literal["pytorch"] = "pytorch"
    dtype: str
    param_count: int
    shapes_hash: str
    parameter_names_hash: str
    tokenizer_name: str | None
    created_at: str
    library: dict[str, str]
    base_model_name: str | None = None
    instruct_model_name: str | None = None
    pipeline_tag: str | None = "text-generation"
    license: str | None = None
    language: str | list[str] | None = None
    tags: list[str] | None = None
    base_model_relation: str | None = "adapter"


class OwnRecord(Frozen):
    """cpt_residual.json: what that package's config has no place for.

    relative_error: norm(written - residual) / norm(residual), measured in float64.
    bit_exact: the same as the residual's own (base + what is written, rounded once, has instruct's
    bits in every tensor), False where writing has rounded or corrections were left out.
    instruct_only: rows that base did not have; they are instruct's own. left_out: what lies beside
    instruct's weights and is not carried.
    """

    format: Literal["cpt_residual.residuals_layout"] = "cpt_residual.residuals_layout"
    format_version: Literal[1] = 1
    dtype: DtypeName
    relative_error: float
    bit_exact: bool
    facts: ModelFacts
    base: ModelRecord
    instruct: ModelRecord
    tied: dict[str, str]
    instruct_only: list[int]
    left_out: list[str] = Field(default_factory=list[str])


@dataclass(frozen=True)
class ModelNames:
    """How the two models are called in config.json, where known: Hub ids or paths."""

    base: str | None = None
    instruct: str | None = None


@dataclass(frozen=True)
class ResidualsFolder:
    """An opened folder of the `residuals` package; weights are not read yet. `own` is None for a
    folder that this package did not write."""

    path: Path
    config: PackageConfig
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]
    own: OwnRecord | None


# --- write ----------------------------------------------------------------------------------------
def write_residuals_layout(
    residual: ResidualArtifact,
    out: Path,
    *,
    dtype: DtypeName = "F32",
    names: ModelNames = ModelNames(),
    streaming: Streaming = DEFAULT_STREAMING,
) -> OwnRecord:
    """Writes the folder `out`, which `residuals.Residuals.from_pretrained(out)` loads.

    Every element is the residual (corrections and factors of low rank included) rounded once to
    `dtype`; names, shapes and hashes are those that package computes for the same pair. Returns
    cpt_residual.json. Raises CompatibilityError where a value does not fit into `dtype`,
    ArtifactError for an `out` that exists; nothing is written then. The bytes depend on the inputs
    alone (created_at stays empty).
    """
    manifest = residual.manifest
    shapes: dict[str, Shape] = {name: record.shape for name, record in manifest.tensors.items()}
    tied = _tied(residual)
    shapes |= {alias: shapes[owner] for alias, owner in tied.items()}
    with fresh_directory(out, inputs=(residual.path,)) as folder:
        size = ITEM_SIZES[dtype] * sum(math.prod(shape) for shape in shapes.values())
        check_free_space(folder, size)
        error_squared, squared = _write_shard(residual, folder, shapes, dtype, streaming)
        own = OwnRecord(
            dtype=dtype,
            relative_error=arithmetic.relative_norm(error_squared, squared) or 0.0,
            bit_exact=manifest.bit_exact and error_squared == 0.0,
            facts=manifest.facts,
            base=manifest.base,
            instruct=manifest.instruct,
            tied=tied,
            instruct_only=manifest.instruct_only,
            left_out=manifest.left_out,
        )
        config = PackageConfig(
            dtype=TORCH_NAMES[dtype],
            param_count=len(shapes),
            shapes_hash=_shapes_hash(shapes),
            parameter_names_hash=_names_hash(shapes),
            tokenizer_name=names.instruct,
            created_at="",
            library={"package": "residuals"},
            base_model_name=names.base,
            instruct_model_name=names.instruct,
            tags=_TAGS,
        )
        carry_tokenizer(residual.instruct_folder, folder)
        forget_code(folder)
        copy_instruct_side(residual.instruct_folder, folder / INSTRUCT_FOLDER)
        (folder / "README.md").write_text(_README, encoding="utf-8")
        write_json_atomic(folder / OWN_FILE, own)
        write_json_atomic(folder / CONFIG_FILE, config)
    return own


def _tied(residual: ResidualArtifact) -> dict[str, str]:
    """Tensors that repeat another: those that instruct stores, and a tied head that it leaves out,
    because the package takes its names from a loaded model."""
    if residual.manifest.tied:
        return residual.manifest.tied
    found = residual.class_names
    name_of = {own: name for name, own in found.names.items()}
    tied = found.tied.items()
    return {a: name_of[b] for a, b in tied if a not in name_of and b in name_of}


def _write_shard(
    residual: ResidualArtifact,
    folder: Path,
    shapes: Mapping[str, Shape],
    dtype: DtypeName,
    streaming: Streaming,
) -> tuple[float, float]:
    """model.safetensors; returns the squared norms of the rounding and of the residual."""
    tied = _tied(residual)
    header, entries = layout(
        SINGLE_FILE, [(name, dtype, shapes[name]) for name in shapes], {"format": "pt"}
    )
    places = {entry.name: entry for entry in entries}
    num_bytes = len(header) + sum(entry.num_bytes for entry in entries)
    num_all, num_done = sum(entry.num_elements for entry in entries), 0
    error_squared, squared, broken = 0.0, 0.0, list[str]()
    with (
        ShardWriter(folder / SINGLE_FILE, header=header, num_bytes=num_bytes) as writer,
        StoredDelta(residual).opened() as delta,
    ):

        def write(block: Block) -> tuple[Block, float, float]:
            owner = tied.get(block.name, block.name)
            high, low = delta.parts(Block(owner, block.start, block.stop))
            stored = arithmetic.round_once(high, dtype)
            writer.write(places[block.name], block.start, stored)
            error = high - to_float64(stored) + (0.0 if low is None else low)
            return block, float(error @ error), float(high @ high)

        for block, error, total in map_in_order(
            write, blocks_of(entries), threads=streaming.threads
        ):
            if not math.isfinite(error):
                broken.append(f"{block.name}: a value is larger than {dtype} can hold")
            if block.name not in tied:
                error_squared, squared = error_squared + error, squared + total
            num_done += block.num_elements
            streaming.progress(num_done, num_all, "parameters")
        require_finite(broken)
        writer.flush()
    return error_squared, squared


# --- read -----------------------------------------------------------------------------------------
def is_residuals_layout(path: Path) -> bool:
    """Whether a folder is of the `residuals` package (its config.json names its version)."""
    if not (path / CONFIG_FILE).is_file():
        return False
    name = path.name or "model"
    return "residuals_version" in read_json_object(path / CONFIG_FILE, name)


def read_residuals_layout(path: Path) -> ResidualsFolder:
    """The checked folder: config.json against the shards, every header, count and hash.

    Raises ArtifactError for files that cannot be trusted, CompatibilityError for another version.
    """
    config = _read_config(path)
    shards = tuple(read_shard(path / name) for name in _shard_names(path))
    entries = [entry for shard in shards for entry in shard.tensors]
    tensors = {entry.name: entry for entry in entries}
    shapes = {name: entry.shape for name, entry in tensors.items()}
    counted = Counter(entry.name for entry in entries)
    problems = [f"{name}: stored twice" for name, count in sorted(counted.items()) if count > 1]
    found = {
        "param_count": len(tensors),
        "parameter_names_hash": _names_hash(shapes),
        "shapes_hash": _shapes_hash(shapes),
    }
    problems += [
        f"{CONFIG_FILE} {key}: {getattr(config, key)}, the shards have {value}"
        for key, value in found.items()
        if getattr(config, key) != value
    ]
    if problems:
        raise ArtifactError(
            f"residual: {path} cannot be trusted",
            problems=problems,
            remedy="Download or save it again.",
        )
    own = _validated(OwnRecord, path / OWN_FILE) if (path / OWN_FILE).is_file() else None
    return ResidualsFolder(path=path, config=config, shards=shards, tensors=tensors, own=own)


def _read_config(path: Path) -> PackageConfig:
    version = read_json_object(path / CONFIG_FILE, "residual").get("residuals_version")
    if version is not None and version != "1.0":
        raise CompatibilityError(
            f"residual: {path} has version {version} of the layout, 1.0 is known",
            remedy="Save it with version 0.3 of the residuals package.",
        )
    return _validated(PackageConfig, path / CONFIG_FILE)


def _validated(kind: type[Model], path: Path) -> Model:
    try:
        return kind.model_validate(read_json_object(path, "residual"))
    except ValidationError as error:
        raise ArtifactError(
            f"residual: {path} is not of the layout of the residuals package",
            problems=field_problems(error),
            remedy="Give a folder that Residuals.save_pretrained or cpt-residual has written.",
        ) from error


def _shard_names(path: Path) -> list[str]:
    if not (path / INDEX_FILE).is_file():
        return [SINGLE_FILE]
    if (path / SINGLE_FILE).exists():
        raise ArtifactError(
            f"residual: {path} holds both {SINGLE_FILE} and {INDEX_FILE}",
            remedy="Which weights are meant is not clear. Remove the file that is not meant.",
        )
    weight_map = read_json_object(path / INDEX_FILE, "residual").get("weight_map")
    values: Iterable[JsonValue] = weight_map.values() if isinstance(weight_map, dict) else [None]
    names = {name if isinstance(name, str) else "" for name in values}
    outside = [name for name in names if not name or Path(name).name != name or "\\" in name]
    if outside or not names:
        raise ArtifactError(
            f"residual: {path / INDEX_FILE} has no weight_map of file names",
            problems=[repr(name) for name in sorted(outside)],
            remedy="Download or save it again.",
        )
    return sorted(names)


def _names_hash(shapes: Mapping[str, Shape]) -> str:
    return hashlib.sha256("|".join(sorted(shapes)).encode()).hexdigest()


def _shapes_hash(shapes: Mapping[str, Shape]) -> str:
    lines = [f"{name}:{list(shapes[name])}" for name in sorted(shapes)]
    return hashlib.sha256("|".join(lines).encode()).hexdigest()
