"""A LoRA adapter (Hu et al. 2022) as a CPT target: base + scale * B @ A, exactly.

The product and the sum are float64, rounded once per element to the base's dtype. peft's own merge
rounds the product, its scaled value and the sum, each to the dtype that the model is loaded in.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import copy_files as copy_folder
from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    carry_tokenizer,
    copy_files,
    read_json_object,
    with_vocab_size,
)
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights import arithmetic
from cpt_residual.weights.alignment import (
    OutputShard,
    output_index,
    output_shard,
    with_copy,
)
from cpt_residual.weights.arithmetic import Raw, to_float32, to_float64
from cpt_residual.weights.checkpoint import INDEX_FILE, Checkpoint
from cpt_residual.weights.interop.adapter_config import AdapterConfig, read_adapter_config
from cpt_residual.weights.interop.adapter_tensors import AdapterTensors, sort_tensors
from cpt_residual.weights.matching import by_class_names
from cpt_residual.weights.methods import low_rank_rows
from cpt_residual.weights.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.shard_header import Shard, TensorEntry, read_shard
from cpt_residual.weights.shard_work import carry
from cpt_residual.weights.staging import fresh_directory
from cpt_residual.weights.writer import ShardWriter

ADAPTER_FILE = "adapter_model.safetensors"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

Factor = npt.NDArray[np.float32]


def merge_adapter(
    adapter: Path, base: Checkpoint, out: Path, *, streaming: Streaming = DEFAULT_STREAMING
) -> Path:
    """Writes the model directory `out`: `base` with the LoRA of the folder `adapter` merged in.

    A tied base whose embedding and head it has trained apart, which is how peft trains them without
    ensure_weight_tying, becomes an untied model: each is what the adapter computes with.

    Every element is float64 base + scale * B @ A rounded once to base's dtype; elements that the
    adapter does not move keep base's bits. Tensors that the adapter stores whole (modules_to_save)
    replace base's. Shards, names and metadata are base's; the tokenizer is the adapter's own where
    it has one, with as many embedding rows as the adapter stores. Returns `out`. Memory: one
    module's factors and a few blocks per thread.

    Raises CompatibilityError for an adapter that does not fit or is not a plain LoRA (every reason
    is named), and for values that are not finite; ArtifactError for broken files and an `out` that
    exists. Nothing is written then. That `adapter` was trained on this very base cannot be proven;
    names and shapes are checked.
    """
    config = read_adapter_config(adapter)
    shard = _open_weights(adapter)
    base = by_class_names(base)
    tensors = sort_tensors(shard, config, base)
    require_equal_aliases(base, threads=streaming.threads)
    tokenizer = adapter if any((adapter / name).is_file() for name in _VOCABULARY_FILES) else None
    _require_rows_for_tokens(tokenizer, tensors, base)
    with fresh_directory(out, inputs=(adapter, base.path)) as folder, ExitStack() as stack:
        merged = _Merged(
            base,
            tensors,
            config,
            stack.enter_context(ShardReader(base.shards)),
            stack.enter_context(ShardReader([shard])),
        )
        check_free_space(folder, sum(shard.num_bytes for shard in merged.shards))
        merged.write(folder, streaming)
        _write_side_files(base, tokenizer, merged, folder)
    return out


def _open_weights(adapter: Path) -> Shard:
    if not (adapter / ADAPTER_FILE).is_file() and (adapter / "adapter_model.bin").is_file():
        raise CompatibilityError(
            f"adapter: {adapter} holds pickle weights only (adapter_model.bin)",
            remedy="Pickle files can run code and are never opened. Save the adapter as "
            "safetensors (save_pretrained does).",
        )
    return read_shard(adapter / ADAPTER_FILE)


class _Merged:
    """The merged model's tensors, computed block by block."""

    def __init__(
        self,
        base: Checkpoint,
        tensors: AdapterTensors,
        config: AdapterConfig,
        base_reader: ShardReader,
        adapter_reader: ShardReader,
    ) -> None:
        self._base, self._tensors, self._config = base, tensors, config
        self._base_reader, self._reader = base_reader, adapter_reader

    def write(self, folder: Path, streaming: Streaming) -> None:
        num_all = sum(entry.num_elements for shard in self.shards for entry in shard.tensors)
        num_done, broken = 0, list[str]()
        for shard in self.shards:
            path = folder / shard.name
            with ShardWriter(path, header=shard.header, num_bytes=shard.num_bytes) as writer:
                carry(shard, writer)
                for entry in shard.tensors:
                    source = self._source(entry)

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

    @cached_property
    def untied(self) -> Mapping[str, str]:
        """Heads that the adapter has made other than the embedding that the base ties them to.
        Raises CompatibilityError for two values of what it has not trained."""
        tied = self._tensors.tied.items()
        untied = {alias: owner for alias, owner in tied if not self._equal(alias, owner)}
        for alias, owner in untied.items():
            names = (alias, owner)
            trained = any(self._config.saves(name.rpartition(".")[0]) for name in names)
            if not trained and self._tensors.pairs.keys().isdisjoint(names):
                raise CompatibilityError(
                    f"adapter: {alias} is stored with other values than {owner}",
                    remedy="The base ties them (tie_word_embeddings), and the adapter has trained "
                    "neither. Nothing was written. Save it again from the model it was trained on.",
                )
        return untied

    def _equal(self, alias: str, owner: str) -> bool:
        """Whether both are the same tensor with the same factors."""
        whole = self._tensors.whole
        left, right = (self._tensors.stored(name) for name in (alias, owner))
        if (alias in whole) != (owner in whole) or left.shape != right.shape:
            return False
        factors = zip(self._factors(alias), self._factors(owner), strict=True)
        return all(
            np.array_equal(one, other) if one is not None and other is not None else one is other
            for one, other in factors
        ) and all(
            np.array_equal(
                to_float32(self._reader.read(left, block.start, block.stop)),
                to_float32(self._reader.read(right, block.start, block.stop)),
            )
            for block in blocks_of([left] if alias in whole else [])
        )

    @cached_property
    def num_rows(self) -> int | None:
        """Of the vocabulary tensors, where they have others than base's."""
        base = self._base
        grown = {
            shape[0]
            for entry in base.tensors.values()
            if (shape := self._tensors.stored(self._owner(entry.name)).shape) != entry.shape
        }
        return grown.pop() if grown else None

    @cached_property
    def shards(self) -> list[OutputShard]:
        """Base's shards, with room for the rows that the adapter stores, and for a head of its own
        beside the embedding."""
        base = self._base
        shards = [output_shard(base, shard, num_rows=self.num_rows) for shard in base.shards]
        for alias, owner in self.untied.items():
            shards = [
                with_copy(shard, alias, owner)
                if alias not in base.tensors and owner in {entry.name for entry in shard.tensors}
                else shard
                for shard in shards
            ]
        return shards

    def _source(self, entry: TensorEntry) -> _Source:
        name = self._owner(entry.name)
        reader = self._reader if name in self._tensors.whole else self._base_reader
        return _Source(reader, self._tensors.stored(name), *self._factors(name))

    def _factors(self, name: str) -> tuple[Factor | None, Factor | None, float]:
        """What is added: scale * left @ right."""
        pair = self._tensors.pairs.get(name)
        if pair is None:
            return None, None, 0.0
        left, right = (
            to_float32(self._reader.read_whole(part)) for part in (pair.left, pair.right)
        )
        if pair.embedding or self._config.fan_in_fan_out:  # the weight is (B @ A) transposed
            left, right = right.T, left.T
        return left, right, self._config.scale(pair.module)

    def _owner(self, name: str) -> str:
        return name if name in self.untied else self._base.aliases.get(name, name)


@dataclass(frozen=True)
class _Source:
    """Where one merged tensor comes from: a stored tensor, plus scale * left @ right."""

    reader: ShardReader
    stored: TensorEntry
    left: Factor | None = None
    right: Factor | None = None
    scale: float = 0.0

    def block(self, block: Block, entry: TensorEntry) -> Raw:
        """The merged elements of one block, in the dtype of `entry`."""
        raw = self.reader.read(self.stored, block.start, block.stop)
        if self.left is None or self.right is None:
            if self.stored.dtype == entry.dtype:
                return raw
            return arithmetic.round_once(to_float64(raw), entry.dtype)
        delta = self.scale * low_rank_rows(self.left, self.right, block.start, block.stop)
        start = to_float64(raw)
        # an element that does not move keeps its bits, the sign of zero too
        return arithmetic.round_once(np.where(delta == 0.0, start, start + delta), entry.dtype)


def _require_rows_for_tokens(
    tokenizer: Path | None, tensors: AdapterTensors, base: Checkpoint
) -> None:
    """Refuses a tokenizer with more tokens than the merged model has embedding rows."""
    if tokenizer is None:
        return
    num_ids = max(TokenSide.read(tokenizer).ids.values(), default=-1) + 1
    problems = [
        f"{name}: {shape[0]} rows"
        for name in tensors.start
        if name in base.rows and (shape := tensors.stored(name).shape)[0] < num_ids
    ]
    if problems:
        raise CompatibilityError(
            f"adapter: its tokenizer has {num_ids} ids, the merged model fewer rows",
            problems=problems,
            remedy="The rows of the added tokens are not in the adapter. Save it again with "
            "save_embedding_layers=True, or remove the tokenizer files that do not belong to it.",
        )


def _write_side_files(
    base: Checkpoint, tokenizer: Path | None, merged: _Merged, folder: Path
) -> None:
    from cpt_residual.modeling.chat import CHAT_FOLDER  # brings transformers

    copy_files(base.path, folder, (CONFIG_FILE, GENERATION_FILE))
    carry_tokenizer(tokenizer or base.path, folder)
    if (base.path / CHAT_FOLDER).is_dir():
        copy_folder(base.path / CHAT_FOLDER, folder / CHAT_FOLDER)
    index = output_index(base, merged.shards)
    if index is not None:
        (folder / INDEX_FILE).write_bytes(index)
    config = read_json_object(base.path / CONFIG_FILE, "base")
    if merged.num_rows is not None:
        config = with_vocab_size(config, merged.num_rows)
    if merged.untied:
        config = {**config, "tie_word_embeddings": False}
    if merged.num_rows is not None or merged.untied:
        write_json_atomic(folder / CONFIG_FILE, config)
