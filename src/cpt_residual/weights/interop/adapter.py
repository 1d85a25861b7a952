"""A LoRA adapter (Hu et al. 2022) as a CPT target: base + scale * B @ A, exactly.

peft reads the adapter (`peft_reader`); the product and the sum are float64 here, rounded once per
element to the base's dtype. peft's own merge rounds the product, its scaled value and the sum, each
to the dtype that the model is loaded in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    PositiveInt,
    ValidationError,
)

from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import copy_files as copy_folder
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.methods.low_rank import low_rank_rows
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    carry_tokenizer,
    copy_files,
    read_json_object,
    with_vocab_size,
)
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import ADAPTER_CONFIG_FILE, INDEX_FILE, Checkpoint
from cpt_residual.weights.io.output_dir import fresh_directory
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.io.shard_header import Shape, TensorEntry, read_shard
from cpt_residual.weights.io.writer import ShardWriter
from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.arithmetic import Raw, to_float32, to_float64
from cpt_residual.weights.merge.shard_progress import carry
from cpt_residual.weights.merge.vocab_rules import (
    OutputShard,
    output_index,
    output_shard,
    with_copy,
)
from cpt_residual.weights.tokens.matching import by_class_names

if TYPE_CHECKING:
    from cpt_residual.weights.interop.peft_reader import Change

ADAPTER_FILE = "adapter_model.safetensors"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PLAIN = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "fan_in_fan_out", "ensure_weight_tying"),
        # what changes training and loading, never base + scale * B @ A:
        *("auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode"),
        *("lora_dropout", "megatron_core", "peft_version", "revision", "task_type"),
        "qalora_group_size",  # use_qalora decides
    }
)
"""Keys of adapter_config.json that may have any value. Any other must be switched off, so that a
later version's new option is refused by name instead of being left out."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Initial values of A and B that leave the base's own weights alone (PiSSA, CorDA, OLoRA, LoftQ
and LoRA-GA change them, so their adapters fit no saved base)."""

_WHY_NOT = {"bias": " (only none)", "init_lora_weights": " (it has changed the base's weights)"}


def require_plain_lora(adapter: Path) -> None:
    """Raises ArtifactError for an adapter_config.json that cannot be read as one,
    CompatibilityError that names every setting whose merge would not be base + scale * B @ A, and
    for weights in pickle files."""
    fields = read_json_object(adapter / ADAPTER_CONFIG_FILE, "adapter")
    problems = [
        f"{key}: {value}{_WHY_NOT.get(key, '')}"
        for key, value in sorted(fields.items())
        if not _is_plain(key, value) and value not in (None, False, {}, [])
    ]
    if fields.get("peft_type") != "LORA":
        problems = [f"PEFT type {fields.get('peft_type')}, not LORA"]
    if problems:
        raise CompatibilityError(
            f"adapter: {len(problems)} setting(s) of {adapter / ADAPTER_CONFIG_FILE} are not "
            "supported",
            problems=problems,
            remedy="Nothing was written: leaving it out would give other weights. Save the adapter "
            "without it, or merge with peft (merge_and_unload, save_pretrained) and give the "
            "merged directory. Not where the adapter has a LoRA on a tied embedding or head: peft "
            "adds it to both, which is another model than was trained.",
        )
    if not (adapter / ADAPTER_FILE).is_file() and (adapter / "adapter_model.bin").is_file():
        raise CompatibilityError(
            f"adapter: {adapter} holds pickle weights only (adapter_model.bin)",
            remedy="Pickle files can run code and are never opened. Save the adapter as "
            "safetensors (save_pretrained does).",
        )
    try:
        _Lora.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(
            f"adapter: {adapter / ADAPTER_CONFIG_FILE} is damaged",
            problems=field_problems(error),
            remedy="Save the adapter again (PeftModel.save_pretrained).",
        ) from error


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


_Modules = Annotated[str, AfterValidator(_pattern)] | list[str] | None


class _Lora(BaseModel):
    """The settings of a LoRA that peft takes without a check, with its defaults."""

    model_config = ConfigDict(strict=True)

    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}
    target_modules: _Modules = None
    exclude_modules: _Modules = None


def _is_plain(key: str, value: JsonValue) -> bool:
    if key == "bias":
        return value == "none"
    if key == "init_lora_weights":
        return isinstance(value, bool) or str(value).lower() in _PLAIN_STARTS
    return key in _PLAIN


def merge_adapter(
    adapter: Path, base: Checkpoint, out: Path, *, streaming: Streaming = DEFAULT_STREAMING
) -> Path:
    """Writes the model directory `out`: `base` with the LoRA of the folder `adapter` merged in.

    A tied base whose embedding and head it has trained apart, which is how peft trains them without
    ensure_weight_tying, becomes an untied model: each is what the adapter computes with.

    Every element is float64 base + scale * B @ A rounded once to base's dtype; elements that the
    adapter does not move keep base's bits. Tensors that the adapter stores whole (modules_to_save)
    replace base's. Shards, names and metadata are base's; the tokenizer is the adapter's own where
    it has one, with as many embedding rows as the adapter stores. Returns `out`. Memory: the
    adapter and a few blocks per thread.

    Raises CompatibilityError for an adapter that does not fit or is not a plain LoRA (every reason
    is named), for a base whose class transformers does not know, and for values that are not
    finite; ArtifactError for broken files and an `out` that exists. Nothing is written then. That
    `adapter` was trained on this very base cannot be proven; names and shapes are checked.
    """
    require_plain_lora(adapter)
    weights = read_shard(adapter / ADAPTER_FILE).path  # raises for a file that cannot be trusted
    base = by_class_names(base)
    require_equal_aliases(base, threads=streaming.threads)
    from cpt_residual.weights.interop.peft_reader import read_changes

    changed = _Changed.of(base, read_changes(adapter, weights, base))
    tokenizer = adapter if any((adapter / name).is_file() for name in _VOCABULARY_FILES) else None
    _require_rows_for_tokens(tokenizer, changed)
    with fresh_directory(out, inputs=(adapter, base.path)) as folder, ExitStack() as stack:
        check_free_space(folder, sum(shard.num_bytes for shard in changed.shards))
        reader = stack.enter_context(ShardReader(base.shards))
        _write(changed, reader, folder, streaming)
        _write_side_files(changed, tokenizer, folder)
    return out


@dataclass(frozen=True)
class _Changed:
    """The base and what the adapter changes of it, by tensor name; `untied`: heads that are no
    longer the embedding that the base ties them to."""

    base: Checkpoint
    changes: Mapping[str, Change]
    untied: Mapping[str, str]

    @classmethod
    def of(cls, base: Checkpoint, changes: Mapping[str, Change]) -> _Changed:
        """Raises CompatibilityError for shapes that do not fit and heads of unclear value."""
        from cpt_residual.weights.interop.peft_reader import Change

        none = Change()
        untied = {
            alias: owner
            for alias, owner in base.tied.items()
            if not changes.get(alias, none).same_as(changes.get(owner, none))
        }
        changed = cls(base, changes, untied)
        problems = [
            f"{alias}: stored with other values than {owner}, which the base ties to it, and the "
            "adapter has trained neither"
            for alias, owner in untied.items()
            if not any(changes.get(name, none).trained for name in (alias, owner))
        ]
        problems += changed.shape_problems()
        if problems:
            raise CompatibilityError(
                f"adapter: {len(problems)} tensor(s) do not fit {base.path}",
                problems=problems,
                remedy="Nothing was written. Give the base that the adapter was trained on, or "
                "save the adapter again from the model it was trained on.",
            )
        return changed

    def shape_problems(self) -> list[str]:
        """Only vocabulary tensors may change their rows, and then all of them alike."""
        shapes = {name: self.shape(name) for name in (*self.base.unique_tensors, *self.untied)}
        moved = {name: shape for name, shape in shapes.items() if shape != self._start(name).shape}
        if not moved:
            return []
        rows = {name: shapes[name][0] for name in shapes if name in {*self.base.rows, *self.untied}}
        problems = [
            f"{name}: base {self._start(name).shape} vs adapter {shape}"
            for name, shape in moved.items()
            if name not in rows or shape[1:] != self._start(name).shape[1:]
        ]
        if len(set(rows.values())) > 1:
            problems.append("rows differ: " + ", ".join(f"{n} {num}" for n, num in rows.items()))
        return problems

    def shape(self, name: str) -> Shape:
        change = self.changes.get(name)
        whole = None if change is None else change.whole
        return self._start(name).shape if whole is None else tuple(whole.shape)

    def source(self, entry: TensorEntry, reader: ShardReader) -> _Source:
        """Where the merged tensor of an output's shard comes from."""
        name = entry.name
        owner = name if name in self.untied else self.base.aliases.get(name, name)
        return _Source(reader, self._start(owner), self.changes.get(owner))

    def _start(self, name: str) -> TensorEntry:
        tensors = self.base.tensors
        return tensors[self.untied.get(name, name)]

    @cached_property
    def num_rows(self) -> int | None:
        """Of the vocabulary tensors, where they have others than base's."""
        grown = {
            shape[0]
            for name, entry in self.base.unique_tensors.items()
            if (shape := self.shape(name)) != entry.shape
        }
        return grown.pop() if grown else None

    @cached_property
    def shards(self) -> list[OutputShard]:
        """Base's shards, with room for the rows that the adapter stores, and for a head of its own
        beside the embedding."""
        base = self.base
        shards = [output_shard(base, shard, num_rows=self.num_rows) for shard in base.shards]
        for alias, owner in self.untied.items():
            shards = [
                with_copy(shard, alias, owner)
                if alias not in base.tensors and owner in {entry.name for entry in shard.tensors}
                else shard
                for shard in shards
            ]
        return shards


@dataclass(frozen=True)
class _Source:
    """A stored tensor of the base, and what the adapter makes of it."""

    reader: ShardReader
    stored: TensorEntry
    change: Change | None

    def block(self, block: Block, entry: TensorEntry) -> Raw:
        """The merged elements of one block, in the dtype of `entry`."""
        change, start, stop = self.change, block.start, block.stop
        if change is None:
            return self.reader.read(self.stored, start, stop)
        if change.whole is None:
            exact = to_float64(self.reader.read(self.stored, start, stop))
        else:
            exact = change.whole.flatten()[start:stop].double().numpy()
        if change.left is not None and change.right is not None:
            left, right = change.left.numpy(), change.right.numpy()
            delta = change.scale * low_rank_rows(left, right, start, stop)
            # an element that does not move keeps its bits, the sign of zero too
            exact = np.where(delta == 0.0, exact, exact + delta)
        return arithmetic.round_once(exact, entry.dtype)


def _write(changed: _Changed, reader: ShardReader, folder: Path, streaming: Streaming) -> None:
    shards = changed.shards
    num_all = sum(entry.num_elements for shard in shards for entry in shard.tensors)
    num_done, broken = 0, list[str]()
    for shard in shards:
        path = folder / shard.name
        with ShardWriter(path, header=shard.header, num_bytes=shard.num_bytes) as writer:
            carry(shard, writer)
            for entry in shard.tensors:
                source = changed.source(entry, reader)

                def merge(
                    block: Block, source: _Source = source, entry: TensorEntry = entry
                ) -> tuple[int, bool]:
                    values = source.block(block, entry)
                    writer.write(entry, block.start, values)
                    return block.num_elements, bool(np.isfinite(to_float32(values)).all())

                for count, finite in map_in_order(
                    merge, blocks_of([entry]), threads=streaming.threads
                ):
                    num_done += count
                    broken += [] if finite else [f"{entry.name}: NaN or Inf"]
                    streaming.progress(num_done, num_all, "parameters")
            writer.flush()
    require_finite(broken)


def _require_rows_for_tokens(tokenizer: Path | None, changed: _Changed) -> None:
    """Refuses a tokenizer with more tokens than the merged model has embedding rows."""
    if tokenizer is None:
        return
    num_ids = max(TokenSide.read(tokenizer).ids.values(), default=-1) + 1
    problems = [
        f"{name}: {shape[0]} rows"
        for name in changed.base.unique_tensors
        if name in changed.base.rows and (shape := changed.shape(name))[0] < num_ids
    ]
    if problems:
        raise CompatibilityError(
            f"adapter: its tokenizer has {num_ids} ids, the merged model fewer rows",
            problems=problems,
            remedy="The rows of the added tokens are not in the adapter. Save it again with "
            "save_embedding_layers=True, or remove the tokenizer files that do not belong to it.",
        )


def _write_side_files(changed: _Changed, tokenizer: Path | None, folder: Path) -> None:
    from cpt_residual.modeling.chat import CHAT_FOLDER  # brings transformers

    base = changed.base
    copy_files(base.path, folder, (CONFIG_FILE, GENERATION_FILE))
    carry_tokenizer(tokenizer or base.path, folder)
    if (base.path / CHAT_FOLDER).is_dir():
        copy_folder(base.path / CHAT_FOLDER, folder / CHAT_FOLDER)
    index = output_index(base, changed.shards)
    if index is not None:
        (folder / INDEX_FILE).write_bytes(index)
    config = read_json_object(base.path / CONFIG_FILE, "base")
    if changed.num_rows is not None:
        config = with_vocab_size(config, changed.num_rows)
    if changed.untied:
        config = {**config, "tie_word_embeddings": False}
    if changed.num_rows is not None or changed.untied:
        write_json_atomic(folder / CONFIG_FILE, config)
