"""The folder layout of the `residuals` package (0.3.2 on PyPI), read and written.

model.safetensors        instruct - base by parameter name (or shards with
                         model.safetensors.index.json); tied tensors are stored twice
config.json              its `ResidualsConfig`; unknown keys make that package fail
tokenizer files          instruct's, required by that package; we add generation_config.json

That package subtracts and adds in the dtype that models are loaded in, rounds each time, and keeps
no proof, no token map and nothing of base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.class_names import ClassNames
from cpt_residual.modeling.known_layouts import class_names
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    carry_tokenizer,
    copy_files,
    forget_code,
    left_out_of,
    read_json_object,
)
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from cpt_residual.weights.io.output_dir import fresh_directory
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_finite,
    same_bytes,
)
from cpt_residual.weights.io.shard_header import ITEM_SIZES, Shape, Shard, TensorEntry, read_shard
from cpt_residual.weights.io.writer import ShardWriter, layout
from cpt_residual.weights.maths import arithmetic, kernels
from cpt_residual.weights.maths.arithmetic import Raw, to_float32, to_float64
from cpt_residual.weights.maths.dtypes import TORCH_NAMES, DtypeName
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.residual.open_delta import High, Low, OpenDelta, add_parts
from cpt_residual.weights.residual.residual_format import ResidualArtifact
from cpt_residual.weights.residual.source import StoredDelta
from cpt_residual.weights.tokens.compatibility import Side
from cpt_residual.weights.tokens.vocab_alignment import Mean

_OLD_RECORD = "cpt_residual.json"  # of folders that earlier versions of this package wrote


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


@dataclass(frozen=True)
class ResidualsFolder:
    """An opened folder of the `residuals` package; weights are not read yet."""

    path: Path
    config: PackageConfig
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]


# --- read -----------------------------------------------------------------------------------------
def is_residuals_folder(path: Path) -> bool:
    """Whether a folder is of the `residuals` package (its config.json names its version)."""
    if not (path / CONFIG_FILE).is_file():
        return False
    return "residuals_version" in read_json_object(path / CONFIG_FILE, path.name or "model")


def read_residuals_folder(path: Path) -> ResidualsFolder:
    """The checked folder: config.json against the shards, every header, count and hash.

    Raises ArtifactError for files that cannot be trusted, CompatibilityError for another version.
    """
    config = _read_config(path)
    shards = tuple(read_shard(path / name) for name in _shard_names(path))
    entries = [entry for shard in shards for entry in shard.tensors]
    tensors = {entry.name: entry for entry in entries}
    shapes = {name: entry.shape for name, entry in tensors.items()}
    problems = ["two shards store one tensor"] * (len(tensors) != len(entries)) + [
        f"{CONFIG_FILE} {key}: {getattr(config, key)}, the shards have {value}"
        for key, value in _identity(shapes).items()
        if getattr(config, key) != value
    ]
    if problems:
        raise ArtifactError(
            f"residual: {path} cannot be trusted",
            problems=problems,
            remedy="Download or save it again.",
        )
    return ResidualsFolder(path, config, shards, tensors)


def _read_config(path: Path) -> PackageConfig:
    fields = read_json_object(path / CONFIG_FILE, "residual")
    version = fields.get("residuals_version")
    if version not in (None, "1.0") or (path / _OLD_RECORD).is_file():
        raise CompatibilityError(
            f"residual: {path} has version {version} of the layout, or is of an earlier "
            "cpt-residual; 1.0 of the residuals package is known",
            remedy="Save it with version 0.3 of the residuals package, or export it again.",
        )
    try:
        return PackageConfig.model_validate(fields)
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
    values = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    names = {str(name or "") for name in values}
    outside = [name for name in names if not name or Path(name).name != name or "\\" in name]
    if outside or not names:
        raise ArtifactError(
            f"residual: {path / INDEX_FILE} has no weight_map of file names",
            problems=[repr(name) for name in sorted(outside)],
            remedy="Download or save it again.",
        )
    return sorted(names)


def _identity(shapes: Mapping[str, Shape]) -> dict[str, JsonValue]:
    """The fields of config.json that say which tensors the folder has."""
    lines = [f"{name}:{list(shapes[name])}" for name in sorted(shapes)]
    return {
        "param_count": len(shapes),
        "parameter_names_hash": hashlib.sha256("|".join(sorted(shapes)).encode()).hexdigest(),
        "shapes_hash": hashlib.sha256("|".join(lines).encode()).hexdigest(),
    }


# --- merge ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FolderDelta:
    """A folder as a residual to merge (a residual.source.DeltaSource); make it with `folder_delta`.

    It names neither an architecture nor base's EOS token ids: the target's architecture is taken
    for it (names and shapes are still compared), and base's ids stay unknown.
    """

    folder: ResidualsFolder
    target: Checkpoint
    instruct_only: Sequence[int] = ()  # rows that base lacks: that package takes base's as zeros
    base_eos: Sequence[int | str] = ()
    checkpoints: Sequence[Checkpoint] = ()
    recorded_norm: float | None = None

    @property
    def side(self) -> Side:
        stored = self.folder.tensors
        aliases = _aliases(self.folder, self.target)
        shapes = {name: entry.shape for name, entry in stored.items() if name not in aliases}
        return Side("residual", shapes, self.target.config, self._class_names.rows_by_name())

    @property
    def own_names(self) -> Mapping[str, str]:
        aliases = _aliases(self.folder, self.target)
        return {n: own for n, own in self._class_names.names.items() if n not in aliases}

    @property
    def tied(self) -> Mapping[str, str]:
        return self._class_names.tied

    def for_text(self, own_names: Mapping[str, str]) -> FolderDelta:
        del own_names  # its names are read as the target's
        return self

    @cached_property
    def _class_names(self) -> ClassNames:
        facts = self.target.facts
        return class_names(
            self.target.path,
            self.folder.tensors,
            model_type=facts.model_type,
            tied=facts.tie_word_embeddings,
        )

    @property
    def tokens(self) -> TokenSide:
        return self._tokens

    @cached_property
    def _tokens(self) -> TokenSide:
        return TokenSide.read(self.folder.path)

    @property
    def instruct_side(self) -> Path:
        return self.folder.path

    @property
    def files(self) -> Sequence[Path]:
        return [self.folder.path / CONFIG_FILE, *(shard.path for shard in self.folder.shards)]

    @property
    def left_out(self) -> Sequence[str]:
        return left_out_of(self.folder.path)

    @contextmanager
    def opened(self, *, once: bool = True) -> Generator[OpenDelta]:
        with ShardReader(self.folder.shards, once=once) as reader:
            yield _OpenFolder(self.folder, reader)


def folder_delta(
    folder: ResidualsFolder, target: Checkpoint, *, streaming: Streaming = DEFAULT_STREAMING
) -> FolderDelta:
    """The folder as a residual for `target`. Raises CompatibilityError where a tied target's head
    and embedding have different residuals. Price: a read of both when the target is tied."""
    with ShardReader(folder.shards) as reader:
        for alias, owner in _aliases(folder, target).items():
            left, right = folder.tensors[alias], folder.tensors[owner]
            if not same_bytes(reader, left, right, threads=streaming.threads):
                raise CompatibilityError(
                    f"residual: {alias} is stored with other values than {owner}",
                    remedy="The target ties them (tie_word_embeddings), so it cannot take both.",
                )
    return FolderDelta(folder, target)


def _aliases(folder: ResidualsFolder, target: Checkpoint) -> dict[str, str]:
    """A head that repeats the embedding, where the target ties them."""
    stored = folder.tensors
    return {a: b for a, b in target.tied.items() if a in stored and b in stored}


@dataclass(frozen=True)
class _OpenFolder:
    folder: ResidualsFolder
    reader: ShardReader

    def fetch(self, block: Block) -> None:
        self.reader.fetch(self.folder.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        return to_float64(self._read(block)), None

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        if target.dtype == np.float16:
            return add_parts(target, self.parts(block), alpha, out)
        return kernels.add(target, to_float32(self._read(block)), alpha, out)

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        return {"residual": self._read(block)}

    def base_mean(self, name: str) -> Mean:
        raise CompatibilityError(
            f"residual: {self.folder.path} does not keep base's mean row of {name}",
            remedy="Use new_token_rows=instruct_row, or merge from base and instruct.",
        )

    def _read(self, block: Block) -> Raw:
        entry = self.folder.tensors[block.name]
        return self.reader.read_reusing(entry, block.start, block.stop)


# --- write ----------------------------------------------------------------------------------------
def write_residuals_folder(
    residual: ResidualArtifact,
    out: Path,
    *,
    dtype: DtypeName = "F32",
    names: tuple[str | None, str | None] = (None, None),
    streaming: Streaming = DEFAULT_STREAMING,
) -> float:
    """Writes the folder `out`, which `residuals.Residuals.from_pretrained(out)` loads; returns
    norm(written - residual) / norm(residual). `names`: of base and instruct.

    Every element is the residual rounded once to `dtype`. Raises CompatibilityError where a value
    does not fit into it and for a residual with rows that base lacks, ArtifactError for an `out`
    that exists; nothing is written then. The bytes depend on the inputs alone.
    """
    if residual.manifest.instruct_only:
        raise CompatibilityError(
            "residual: it has rows that base lacks, which the residuals package cannot tell apart",
            remedy="Nothing was written. Merge with cpt-residual from the residual itself.",
        )
    shapes: dict[str, Shape] = {n: each.shape for n, each in residual.manifest.tensors.items()}
    tied = _tied(residual)
    shapes |= {alias: shapes[owner] for alias, owner in tied.items()}
    with fresh_directory(out, inputs=(residual.path,)) as folder:
        check_free_space(folder, ITEM_SIZES[dtype] * sum(map(math.prod, shapes.values())))
        lost = _write_shard(residual, folder / SINGLE_FILE, shapes, dtype, streaming)
        carry_tokenizer(residual.instruct_folder, folder)
        copy_files(residual.instruct_folder, folder, [GENERATION_FILE])
        forget_code(folder)
        fields: dict[str, JsonValue] = {"tokenizer_name": names[1], "created_at": ""}
        fields |= {"dtype": TORCH_NAMES[dtype], "library": {"package": "residuals"}}
        fields |= {"base_model_name": names[0], "instruct_model_name": names[1]}
        config = PackageConfig.model_validate({**fields, **_identity(shapes)})
        write_json_atomic(folder / CONFIG_FILE, config)
    return lost


def _tied(residual: ResidualArtifact) -> dict[str, str]:
    """Tensors that repeat another: those that instruct stores, and a tied head that it leaves out,
    because the package takes its names from a loaded model."""
    if residual.manifest.tied:
        return residual.manifest.tied
    name_of = {own: name for name, own in residual.class_names.names.items()}
    tied = residual.class_names.tied.items()
    return {a: name_of[b] for a, b in tied if a not in name_of and b in name_of}


def _write_shard(
    residual: ResidualArtifact,
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: DtypeName,
    streaming: Streaming,
) -> float:
    """Returns the relative norm of what rounding has cost."""
    tied = _tied(residual)
    header, entries = layout(path.name, [(n, dtype, shapes[n]) for n in shapes], {"format": "pt"})
    places = {entry.name: entry for entry in entries}
    num_bytes = len(header) + sum(entry.num_bytes for entry in entries)
    num_all, num_done = sum(entry.num_elements for entry in entries), 0
    error_squared, squared, broken = 0.0, 0.0, list[str]()
    with (
        ShardWriter(path, header=header, num_bytes=num_bytes) as writer,
        StoredDelta(residual).opened() as delta,
    ):

        def write(block: Block) -> tuple[Block, float, float]:
            owner = tied.get(block.name, block.name)
            high, low = delta.parts(Block(owner, block.start, block.stop))
            stored = arithmetic.round_once(high, dtype)
            writer.write(places[block.name], block.start, stored)
            error = high - to_float64(stored) + (0.0 if low is None else low)
            return block, float(error @ error), float(high @ high)

        done = map_in_order(write, blocks_of(entries), threads=streaming.threads)
        for block, error, total in done:
            if not math.isfinite(error):
                broken.append(f"{block.name}: a value is larger than {dtype} can hold")
            if block.name not in tied:
                error_squared, squared = error_squared + error, squared + total
            num_done += block.num_elements
            streaming.progress(num_done, num_all, "parameters")
        require_finite(broken)
        writer.flush()
    return arithmetic.relative_norm(error_squared, squared) or 0.0
