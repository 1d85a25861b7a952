"""Embedding and head of a merged model whose tokens are not the residual's: row by row.

`vocab_alignment` decides which row comes from where; here the decision is carried out block by
block, in the coordinates of the merged model. With equal maps nothing of this is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import Block
from cpt_residual.weights.io.shard_header import Shape, Shard, TensorEntry, stored_in
from cpt_residual.weights.io.writer import layout
from cpt_residual.weights.maths.arithmetic import Raw, merged_exactly, to_float64
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.merge.tensor_rules import Sources
from cpt_residual.weights.residual.open_delta import High, Low, OpenDelta, place
from cpt_residual.weights.tokens.embedding_rows import runs, width_of
from cpt_residual.weights.tokens.vocab_alignment import (
    NONE,
    Mean,
    RowPlan,
    new_rows,
)


@dataclass(frozen=True)
class OutputShard:
    """One shard of the merged model: the target's, but for vocabulary tensors that have grown.

    carried: tensors of the target's shard `source` that its class does not read, as they lie there
    and as they lie here; they are copied."""

    name: str
    header: bytes
    num_bytes: int
    tensors: tuple[TensorEntry, ...]
    source: Path
    carried: tuple[tuple[TensorEntry, TensorEntry], ...] = ()


def output_shards(target: Checkpoint, plan: RowPlan) -> list[OutputShard]:
    """The target's shards with `plan.num_rows` rows in every vocabulary tensor."""
    num_rows = None if plan.identity else plan.num_rows
    return [output_shard(target, shard, num_rows=num_rows) for shard in target.shards]


def output_index(target: Checkpoint, shards: list[OutputShard]) -> bytes | None:
    """The target's index; its totals follow the shards when they have grown."""
    grown = sum(shard.num_bytes for shard in shards) - target.num_bytes
    if target.index is None or not grown:
        return target.index
    fields = json.loads(target.index)
    fields["weight_map"] |= {
        entry.name: shard.name
        for shard in shards
        for entry in shard.tensors
        if entry.name not in target.tensors
    }
    entries = [entry for shard in shards for entry in shard.tensors]
    carried = [entry for shard in shards for _, entry in shard.carried]
    totals: dict[str, JsonValue] = fields.get("metadata") or {}
    fields["metadata"] = totals
    totals["total_size"] = sum(entry.num_bytes for entry in (*entries, *carried))
    if "total_parameters" in totals:  # as transformers counts: tied tensors once
        unique = (entry for entry in entries if entry.name not in target.aliases)
        totals["total_parameters"] = sum(entry.num_elements for entry in unique)
    return (json.dumps(fields, indent=2) + "\n").encode()


def output_shard(target: Checkpoint, shard: Shard, *, num_rows: int | None) -> OutputShard:
    """One of the target's shards with `num_rows` rows in every vocabulary tensor; None: as many as
    it has."""
    read, unread = tuple(target.entries_of(shard)), target.unread_of(shard)
    aligned = frozenset[str](() if num_rows is None else target.rows)
    if num_rows is None or not any(e.name in aligned and e.shape[0] != num_rows for e in read):
        same = tuple((entry, entry) for entry in unread)
        return OutputShard(shard.name, shard.header, shard.num_bytes, read, shard.path, same)
    stored = stored_in(shard)
    its_own = target.class_names.names
    key_of = {e.name: target.spelling.get(e.name, e.name) for e in stored if e.name in its_own}
    tensors: list[tuple[str, DtypeName, Shape]] = [
        (entry.name, entry.dtype, (num_rows, *entry.shape[1:]))
        if key_of.get(entry.name) in aligned
        else (entry.name, entry.dtype, entry.shape)
        for entry in stored
    ]
    metadata: dict[str, str] = json.loads(shard.header[8:]).get("__metadata__") or {}
    header, placed = layout(shard.name, tensors, metadata)
    num_bytes = len(header) + sum(entry.num_bytes for entry in placed)
    place_of = {entry.name: entry for entry in placed}
    merged = tuple(
        replace(place_of[entry.name], name=key_of[entry.name])
        for entry in stored
        if entry.name in key_of
    )
    carried = tuple((entry, place_of[entry.name]) for entry in unread)
    return OutputShard(shard.name, header, num_bytes, merged, shard.path, carried)


def with_copy(shard: OutputShard, name: str, owner: str) -> OutputShard:
    """The shard with room for one more tensor, `name`, of the dtype and shape of its `owner`."""
    fields: dict[str, dict[str, Any]] = json.loads(shard.header[8:])
    metadata = fields.pop("__metadata__", None) or {}
    (like,) = (entry for entry in shard.tensors if entry.name == owner)
    stored = sorted(fields.items(), key=lambda item: item[1]["data_offsets"])
    tensors = [(key, each["dtype"], tuple(each["shape"])) for key, each in stored]
    header, placed = layout(shard.name, [*tensors, (name, like.dtype, like.shape)], metadata)
    shift = len(header) - len(shard.header)

    def moved(entry: TensorEntry) -> TensorEntry:
        return replace(entry, offset=entry.offset + shift)

    return replace(
        shard,
        header=header,
        num_bytes=shard.num_bytes + shift + like.num_bytes,
        tensors=(*map(moved, shard.tensors), placed[-1]),
        carried=tuple((source, moved(entry)) for source, entry in shard.carried),
    )


@dataclass(frozen=True)
class AlignedRule:
    """How one vocabulary tensor is merged when maps differ: target + strength * residual where both
    have the token, the target's row where the residual has none, `new_rows` for instruct's own.

    owner: the tensor's name in the residual. moves: which rows get the residual at all; rows of
    instruct's own tokens are made whatever it says, for there is nothing else to fill them with.
    means: the target's and base's mean rows, for new_token_rows=base_mean.
    """

    entry: TensorEntry
    owner: str
    plan: RowPlan
    scale: float
    moves: npt.NDArray[np.bool_]
    means: tuple[Mean, Mean] | None

    def reads_residual(self, alpha: float) -> bool:
        """Never in the target's order, whatever alpha is."""
        del alpha
        return False

    def merge(
        self, block: Block, target: Raw, alpha: float, out: Raw, sources: Sources
    ) -> MergeSums:
        """out = the merged elements of one block; `target`: the target's, 0 where it has none."""
        width, strength = width_of(self.entry), alpha * self.scale
        high, low = self._residual(block, sources.delta)
        elements = np.arange(block.start, block.stop)
        rows = elements // width
        start = to_float64(target)
        new = self.plan.instruct_only[rows]
        moved = (self.plan.residual_row[rows] != NONE) & self.moves[rows] & ~new & (high != 0.0)
        if strength == 0.0:
            moved[:] = False
        exact = np.where(moved, merged_exactly(start, high, low, strength), start)
        if new.any():
            columns = elements[new] % width
            means = self.means and (self.means[0][columns], self.means[1][columns])
            exact[new] = new_rows(high[new], strength=strength, means=means)
        move = np.where(new | moved, exact - start, 0.0)
        return place(target, exact, move, out)

    def _residual(self, block: Block, delta: OpenDelta) -> tuple[High, Low]:
        high, low = np.zeros(block.num_elements), np.zeros(block.num_elements)
        for part, source in runs(block, self.plan.residual_row, width_of(self.entry)):
            if source != NONE:
                piece = Block(self.owner, source, source + part.stop - part.start)
                high[part], its_low = delta.parts(piece)
                if its_low is not None:
                    low[part] = its_low
        return high, low


def require_plain(recipe: MergeRecipe) -> None:
    """CompatibilityError for recipes that ask for base rows of tokens that base may not have."""
    if recipe.beyond_addition:
        raise CompatibilityError(
            "With different token maps (vocab_policy=common_tokens) only plain addition is defined",
            problems=[f"{name}: {value}" for name, value in recipe.beyond_addition.items()],
            remedy="Rows that only some models have would need a rule of their own. Leave these at "
            "their defaults; alpha, scales and embedding_rows work.",
        )
