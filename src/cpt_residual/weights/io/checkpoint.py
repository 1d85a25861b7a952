"""A checkpoint as a frozen value: tensor locations, verified from headers alone.

`open_checkpoint` reads safetensors headers, the index and config.json, never weights, and needs
no torch, so that a plan can call it. All problems of a directory are collected before raising.
Price: one small read per shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.class_names import ClassNames, RowPart
from cpt_residual.modeling.known_layouts import class_names, is_plain
from cpt_residual.modeling.side_files import CONFIG_FILE, leaves_folder, read_json_object
from cpt_residual.weights.io.foreign_weights import (
    StoredDtype,
    refuse_foreign_files,
    refuse_foreign_weights,
    refuse_quantised,
    require_plain_config,
)
from cpt_residual.weights.io.shard_header import Shard, TensorEntry, read_shard, stored_in

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MAX_FILE_NAME, _MAX_SHOWN = 255, 80
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

Size = Annotated[int, Field(gt=0, le=2**31)]
NumLayers = Annotated[int, Field(ge=0, le=10_000)]
"""What no model has more of: whoever builds one without weights would need the memory."""


class ModelFacts(BaseModel):
    """The fields of config.json that decide whether two models' weights can be added.

    rope_theta is read from either place where releases keep it. Rotary *scaling* is left out on
    purpose: Llama 3 and 3.1 differ in it and their residuals fit each other (portability); the
    merged model keeps its target's."""

    model_config = ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=()
    )

    model_type: str
    tie_word_embeddings: bool | None = None
    hidden_size: Size | None = None
    num_hidden_layers: NumLayers | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
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
class Checkpoint:
    """The weights of a model directory, as its class reads them (see modeling.class_names).

    spelling: stored names to those that its tensors go by here, where they differ (see
    weights.matching). text_only: whether all but its text part is left aside. What no parameter
    reads, and what is left aside, is in the shards alone.
    """

    role: str
    path: Path
    shards: tuple[Shard, ...]
    index: bytes | None
    facts: ModelFacts
    spelling: Mapping[str, str] = field(default_factory=dict[str, str])
    text_only: bool = False

    @cached_property
    def class_names(self) -> ClassNames:
        """How the class reads the stored names. Raises CompatibilityError for tensors that it reads
        and that are no weights."""
        facts = self.facts
        found = class_names(
            self.path,
            self._stored_names,
            model_type=facts.model_type,
            tied=facts.tie_word_embeddings,
        )
        constants = [tensor for shard in self.shards for tensor in shard.constants]
        read = [StoredDtype(t.name, t.dtype) for t in constants if t.name in found.names]
        refuse_foreign_weights(self.role, self.path, {}, read)
        if twice := found.stored_twice():
            raise _untrusted(self.role, self.path, twice)
        return found.text_part() if self.text_only else found

    @property
    def _stored_names(self) -> list[str]:
        return [tensor.name for shard in self.shards for tensor in stored_in(shard)]

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
        """As `num_parameters`, for plans: all that is stored where transformers would have to say
        which tensors repeat others."""
        if is_plain(self.facts.model_type, self._stored_names):
            return self.num_parameters
        return sum(entry.num_elements for shard in self.shards for entry in shard.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def open_checkpoint(
    path: Path, *, role: str, links_allowed: bool = False, to_look: bool = False
) -> Checkpoint:
    """The checked layout of a model directory; `role` names it in messages.

    Raises ArtifactError for files that cannot be trusted, CompatibilityError for weights of a kind
    that is not supported. Links that leave the directory are refused unless `links_allowed`, which
    is for directories that our own source stage has made. So is a config.json that says quantised
    beside weights that are not, unless the model is opened `to_look` at it alone.
    """
    if not path.is_dir():
        raise ArtifactError(
            f"{role}: {path} is not a directory", remedy="Give the directory of a saved model."
        )
    config = _read_config(path, role)
    facts = _facts_of(config, path, role)
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
            shards.append(read_shard(path / name, with_constants=True))
        except ArtifactError as error:
            problems.extend([error.what, *error.problems])
    problems.extend(_layout_problems(shards, weight_map, complete=len(shards) == len(names)))
    if problems:
        refuse_foreign_files(role, path, config, [path / name for name in names], problems)
        raise _untrusted(role, path, problems)
    constants = [StoredDtype(t.name, t.dtype) for shard in shards for t in shard.constants]
    refuse_quantised(role, path, config, constants)
    if not to_look:
        require_plain_config(role, path, config)
    return Checkpoint(role=role, path=path, shards=tuple(shards), index=index, facts=facts)


def _untrusted(role: str, path: Path, problems: list[str]) -> ArtifactError:
    """The error for weights that are not read."""
    return ArtifactError(
        f"{role}: the weights in {path} cannot be trusted",
        problems=problems,
        remedy="Nothing was read. Download or save the model again.",
    )


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a PEFT adapter and no model's weights; trainers leave the base's
    config.json beside an adapter, and an adapter_config.json beside a model that it is merged
    into."""
    weights = (path / SINGLE_FILE, path / INDEX_FILE)
    return (path / ADAPTER_CONFIG_FILE).is_file() and not any(
        file.exists() or file.is_symlink() for file in weights
    )


def _read_config(path: Path, role: str) -> dict[str, JsonValue]:
    if is_adapter(path):
        raise CompatibilityError(
            f"{role}: {path} is a LoRA adapter, not a model",
            remedy="Merge the adapter into its base model first and give the merged directory.",
        )
    if beside := [name for name in _ADAPTER_FILES if (path / name).is_file()]:
        raise CompatibilityError(
            f"{role}: {path} holds the weights of a model and those of an adapter",
            problems=beside,
            remedy="Whether the adapter is merged into the model cannot be told. Move adapter_* "
            "elsewhere if it is; if it is not, the model's weights.",
        )
    return read_json_object(path / CONFIG_FILE, role)


def _facts_of(config: Mapping[str, JsonValue], path: Path, role: str) -> ModelFacts:
    try:
        return ModelFacts.model_validate(config)
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
        return f"{name[:_MAX_SHOWN]!r}: the index points outside the directory"
    if "\0" in name or len(name.encode()) > _MAX_FILE_NAME:
        return f"{name[:_MAX_SHOWN]!r}: the index names what cannot be a file"
    if not links_allowed and leaves_folder(path / name):
        return f"{name}: a link that leaves the directory ({os.path.realpath(path / name)})"
    return ""


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
