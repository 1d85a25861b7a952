"""A model directory as a frozen value: which tensors lie where, proven from headers alone.

`open_checkpoint` reads safetensors headers, the index and config.json, never weights, and needs
no torch, so that a plan can call it. All problems of a directory are collected before raising.
Price: one small read per shard.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.class_names import PLAIN_TYPES, ClassNames, RowPart, class_names
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    json_object,
    leaves_folder,
    read_json_object,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_SIZES: Mapping[str, int] = {"BF16": 2, "F16": 2, "F32": 4}
CONSTANT_SIZES: Mapping[str, int] = {"BOOL": 1, "U8": 1, "I64": 8}
"""Of causal masks and the like, which old files keep beside the weights."""
_SIZES: Mapping[str, int] = {**ITEM_SIZES, **CONSTANT_SIZES}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

Shape = tuple[int, ...]
DtypeName = Literal["BF16", "F16", "F32"]
TORCH_NAMES: Mapping[DtypeName, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class ModelFacts(BaseModel):
    """The fields of config.json that decide whether two models' weights can be added.

    rope_theta is read from either place where releases keep it. Rotary *scaling* is left out on
    purpose: Llama 3 and 3.1 differ in it and their residuals fit each other (portability); the
    merged model keeps its target's."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_type: str
    tie_word_embeddings: bool | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _lift_rope_theta(cls, config: object) -> object:
        if isinstance(config, dict) and "rope_theta" not in config:
            fields = cast("dict[str, Any]", config)
            rope = fields.get("rope_parameters")
            if isinstance(rope, dict) and "rope_theta" in rope:
                return {**fields, "rope_theta": cast("dict[str, Any]", rope)["rope_theta"]}
        return cast("object", config)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. `offset` is in bytes from the start of the shard's file."""

    name: str
    dtype: DtypeName
    shape: Shape
    shard: str
    offset: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        return _SIZES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.item_size


@dataclass(frozen=True)
class Shard:
    """One safetensors file. `header` is its raw start, length prefix included; tensors are in
    the order of their offsets, under their stored names; constants: those whose dtype is one of
    CONSTANT_SIZES, which no weight has."""

    name: str
    path: Path
    header: bytes
    num_bytes: int
    tensors: tuple[TensorEntry, ...]
    constants: tuple[TensorEntry, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model directory, as its class reads them (see modeling.class_names).

    spelling: stored names to those that its tensors go by here, where they differ (see
    weights.matching). What no parameter reads is in the shards alone.
    """

    role: str
    path: Path
    shards: tuple[Shard, ...]
    index: bytes | None
    facts: ModelFacts
    spelling: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def class_names(self) -> ClassNames:
        """How the class reads the stored names. Raises ArtifactError for tensors that it reads and
        that are no weights."""
        stored = [tensor.name for shard in self.shards for tensor in stored_in(shard)]
        facts = self.facts
        found = class_names(
            self.path, stored, model_type=facts.model_type, tied=facts.tie_word_embeddings
        )
        constants = [tensor for shard in self.shards for tensor in shard.constants]
        if read := [dtype_problem(t.name, t.dtype) for t in constants if t.name in found.names]:
            raise untrusted(self.role, self.path, read)
        return found

    @cached_property
    def _read(self) -> ClassNames:
        return self.class_names.spelled(self.spelling)

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """What the class reads, in the files' order."""
        return {entry.name: entry for shard in self.shards for entry in self.entries_of(shard)}

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Tensors that the class ties, to what they repeat; what is not stored by the class's
        name."""
        return self._read.tied_by_name()

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """Tied tensors that are stored a second time, to the tensor that they repeat."""
        return {a: b for a, b in self.tied.items() if a in self.tensors and b in self.tensors}

    @cached_property
    def rows(self) -> Mapping[str, RowPart]:
        """The tensors with one row per token, by the class. Raises CompatibilityError where the
        class cannot be asked."""
        self.class_names.require_known(self.role)
        return self._read.rows_by_name()

    @property
    def own_names(self) -> Mapping[str, str]:
        """The class's name of every tensor, tied tensors once."""
        names = self._read.names.items()
        return {name: own for name, own in names if name not in self.aliases}

    def entries_of(self, shard: Shard) -> Iterator[TensorEntry]:
        """The tensors of one of its shards that the class reads, in the file's order."""
        read = self.class_names.names
        for entry in shard.tensors:
            if entry.name in read:
                yield replace(entry, name=self.spelling.get(entry.name, entry.name))

    def unread_of(self, shard: Shard) -> tuple[TensorEntry, ...]:
        """What one of its shards holds beside them."""
        read = self.class_names.names
        return tuple(entry for entry in stored_in(shard) if entry.name not in read)

    @property
    def unique_tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor once: stored copies of tied tensors are left out."""
        return {name: entry for name, entry in self.tensors.items() if name not in self.aliases}

    @property
    def config(self) -> dict[str, JsonValue]:
        """All fields of config.json."""
        return read_json_object(self.path / CONFIG_FILE, self.role)

    @property
    def num_parameters(self) -> int:
        return sum(entry.num_elements for entry in self.unique_tensors.values())

    @property
    def num_parameters_stored(self) -> int:
        """As `num_parameters`, for plans: only the classes of PLAIN_TYPES are asked which tensors
        repeat others, because the rest need transformers."""
        if self.facts.model_type in PLAIN_TYPES:
            return self.num_parameters
        return sum(entry.num_elements for shard in self.shards for entry in shard.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def open_checkpoint(path: Path, *, role: str, links_allowed: bool = False) -> Checkpoint:
    """The checked layout of a model directory; `role` names it in messages.

    Raises ArtifactError for files that cannot be trusted, CompatibilityError for weights of a kind
    that is not supported. Links that leave the directory are refused unless `links_allowed`, which
    is for directories that our own source stage has made.
    """
    if not path.is_dir():
        raise ArtifactError(
            f"{role}: {path} is not a directory", remedy="Give the directory of a saved model."
        )
    facts = _read_facts(path, role)
    index, weight_map = _read_index(path, role)
    problems: list[str] = []
    shards: list[Shard] = []
    names = sorted(set(weight_map.values())) if weight_map else [SINGLE_FILE]
    for name in names:
        problem = _unsafe_name(path, name, links_allowed=links_allowed)
        if problem:
            problems.append(problem)
            continue
        try:
            shards.append(_read_shard(path / name, with_constants=True))
        except ArtifactError as error:
            problems.extend([error.what, *error.problems])
    problems.extend(_layout_problems(shards, weight_map, complete=len(shards) == len(names)))
    if problems:
        raise untrusted(role, path, problems)
    return Checkpoint(role=role, path=path, shards=tuple(shards), index=index, facts=facts)


def stored_in(shard: Shard) -> list[TensorEntry]:
    """All that one shard holds, in the order of the offsets."""
    return sorted((*shard.tensors, *shard.constants), key=lambda entry: entry.offset)


def untrusted(role: str, path: Path, problems: list[str]) -> ArtifactError:
    """The error for weights that are not read."""
    return ArtifactError(
        f"{role}: the weights in {path} cannot be trusted",
        problems=problems,
        remedy="Nothing was read. Download or save the model again.",
    )


def dtype_problem(name: str, dtype: object) -> str:
    """What is wrong with a weight of this dtype."""
    return f"{name}: dtype {dtype} is not one of {', '.join(sorted(ITEM_SIZES))}"


def read_shard(path: Path) -> Shard:
    """One safetensors file's checked header: sizes, offsets, dtypes, no holes, no overlaps."""
    return _read_shard(path, with_constants=False)


def _read_shard(path: Path, *, with_constants: bool) -> Shard:
    if not path.is_file():
        raise ArtifactError(f"{path.name}: the file is missing")
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path.name}: not a safetensors file, or cut inside its header ({num_bytes} bytes)"
            )
        raw = file.read(header_bytes)
    try:
        header = json_object(raw)
    except ValueError as error:
        raise ArtifactError(f"{path.name}: the safetensors header is broken: {error}") from error
    header.pop("__metadata__", None)
    entries: list[TensorEntry] = []
    problems: list[str] = []
    for name, fields in header.items():
        entry = _entry(name, fields, shard=path.name, start=8 + header_bytes)
        if isinstance(entry, str):
            problems.append(entry)
        elif entry.dtype in ITEM_SIZES or with_constants:
            entries.append(entry)
        else:
            problems.append(dtype_problem(name, entry.dtype))
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    if not problems:
        problems = _offset_problems(entries, shard=path.name, start=8 + header_bytes, end=num_bytes)
    if problems:
        raise ArtifactError(
            f"{path.name}: {len(problems)} problem(s) in the header", problems=problems
        )
    return Shard(
        name=path.name,
        path=path,
        header=prefix + raw,
        num_bytes=num_bytes,
        tensors=tuple(entry for entry in entries if entry.dtype in ITEM_SIZES),
        constants=tuple(entry for entry in entries if entry.dtype not in ITEM_SIZES),
    )


def _read_facts(path: Path, role: str) -> ModelFacts:
    if (path / "adapter_config.json").is_file() and not (path / SINGLE_FILE).is_file():
        raise CompatibilityError(
            f"{role}: {path} is a LoRA adapter, not a model",
            remedy="Merge the adapter into its base model first and give the merged directory.",
        )
    try:
        return ModelFacts.model_validate(read_json_object(path / CONFIG_FILE, role))
    except ValidationError as error:
        raise ArtifactError(
            f"{role}: {path / CONFIG_FILE} is not a model's configuration",
            problems=field_problems(error),
            remedy="Download or save the model again.",
        ) from error


def _read_index(path: Path, role: str) -> tuple[bytes | None, dict[str, str]]:
    single, index_path = path / SINGLE_FILE, path / INDEX_FILE
    if single.exists() and index_path.exists():
        raise ArtifactError(
            f"{role}: {path} holds both {SINGLE_FILE} and {INDEX_FILE}",
            remedy="Which weights are meant is not clear. Remove the file that is not the model.",
        )
    if index_path.is_file():
        fields = read_json_object(index_path, role).get("weight_map")
        weight_map = fields if isinstance(fields, dict) else {}
        if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ArtifactError(
                f"{role}: {index_path} has no weight_map of file names",
                remedy="Download or save the model again.",
            )
        return index_path.read_bytes(), {name: str(shard) for name, shard in weight_map.items()}
    if single.exists() or single.is_symlink():
        return None, {}
    _refuse_other_weights(path, role)
    raise ArtifactError(
        f"{role}: {path} holds no weights ({SINGLE_FILE} or {INDEX_FILE})",
        remedy="Give the directory of a saved model.",
    )


def _refuse_other_weights(path: Path, role: str) -> None:
    files = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in files if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        raise CompatibilityError(
            f"{role}: {path} holds pickle weights only",
            problems=pickles,
            remedy="Pickle files can run code and are never opened. Convert the model to "
            "safetensors (save_pretrained does) and give that directory.",
        )
    others = [name for name in files if name.endswith(".safetensors")]
    if others:
        raise ArtifactError(
            f"{role}: {path} has safetensors files but neither {SINGLE_FILE} nor {INDEX_FILE}",
            problems=others,
            remedy="The index is missing or the files are not a model's. Download it again.",
        )


def _unsafe_name(path: Path, name: str, *, links_allowed: bool) -> str:
    if not name or name in {".", ".."} or Path(name).name != name or "\\" in name:
        return f"{name!r}: the index points outside the directory"
    if not links_allowed and leaves_folder(path / name):
        return f"{name}: a link that leaves the directory ({os.path.realpath(path / name)})"
    return ""


def _entry(name: str, fields: JsonValue, *, shard: str, start: int) -> TensorEntry | str:
    if not isinstance(fields, dict):
        return f"{name}: the entry is not an object"
    dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        return dtype_problem(name, dtype)
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        return f"{name}: shape {shape} or data_offsets {span} are not counts"
    entry = TensorEntry(
        name=name,
        dtype=cast("DtypeName", dtype),
        shape=tuple(shape),
        shard=shard,
        offset=start + span[0],
    )
    if span[1] - span[0] != entry.num_bytes:
        return (
            f"{name}: {dtype} {list(shape)} takes {entry.num_bytes} bytes, "
            f"the header says {span[1] - span[0]}"
        )
    return entry


def _are_counts(value: JsonValue) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _offset_problems(entries: list[TensorEntry], *, shard: str, start: int, end: int) -> list[str]:
    problems: list[str] = []
    expected = start
    for entry in entries:
        if entry.offset != expected:
            kind = "overlaps the tensor before it" if entry.offset < expected else "leaves a hole"
            problems.append(
                f"{entry.name}: byte offset {entry.offset}, expected {expected}: {kind}"
            )
        expected = entry.offset + entry.num_bytes
    if expected != end and not problems:
        kind = "is truncated" if end < expected else "has bytes after its last tensor"
        problems.append(f"{shard} {kind}: {end} bytes, its header describes {expected}")
    return problems


def _layout_problems(
    shards: Iterable[Shard], weight_map: Mapping[str, str], *, complete: bool
) -> list[str]:
    problems: list[str] = []
    found: dict[str, str] = {}
    for shard in shards:
        for entry in stored_in(shard):
            if entry.name in found:
                problems.append(f"{entry.name}: stored in {found[entry.name]} and in {shard.name}")
            found[entry.name] = shard.name
            if weight_map and entry.name not in weight_map:
                problems.append(f"{entry.name}: in {shard.name} but not in the index")
    for name, shard_name in sorted(weight_map.items()):
        if found.get(name, shard_name) != shard_name:
            problems.append(f"{name}: the index says {shard_name}, it is in {found[name]}")
        elif complete and name not in found:
            problems.append(f"{name}: the index says {shard_name}, which does not hold it")
    if complete and not found:
        problems.append("no tensors at all")
    return problems
