"""Where a residual comes from while it is added: a stored one, or base and instruct themselves.

Both give the same bits for the same pair. `exact` is what methods compute with, `add` plain
addition in one pass. Opened sources may be used by several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import EXACT_STORAGE, VocabPolicy
from cpt_residual.modeling.class_names import ClassNames
from cpt_residual.modeling.side_files import left_out_of
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights import arithmetic, kernels
from cpt_residual.weights.arithmetic import RAW_DTYPES, Raw, to_float32, to_float64
from cpt_residual.weights.chat_contract import eos_token_ids, eos_tokens
from cpt_residual.weights.checkpoint import Checkpoint
from cpt_residual.weights.compatibility import Side, require_match, side_of
from cpt_residual.weights.kernels import MergeSums
from cpt_residual.weights.matching import spelled_like, text_part_for
from cpt_residual.weights.methods import low_rank_rows
from cpt_residual.weights.reader import Block, ShardReader
from cpt_residual.weights.residual_format import (
    BASE_MEAN,
    CORRECTIONS_FILE,
    LEFT,
    MANIFEST_FILE,
    RIGHT,
    ResidualArtifact,
)
from cpt_residual.weights.rows import gather, mean_of_rows, width_of
from cpt_residual.weights.vocabulary import (
    Mean,
    PairPlan,
    plan_pair,
)

Exact = npt.NDArray[np.float64]
High, Low = Exact, Exact


class OpenDelta(Protocol):
    """A residual whose files are open."""

    def fetch(self, block: Block) -> None:
        """Reads elements of which this thread then asks for the blocks."""
        ...

    def parts(self, block: Block) -> tuple[High, Low | None]:
        """The residual as high + low (see arithmetic.exact_sum); None: all low parts are 0."""
        ...

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        """out = target + alpha * residual, rounded once to target's dtype."""
        ...

    def base_mean(self, name: str) -> Mean:
        """Base's mean row over the tokens that base and instruct share, of a vocabulary tensor."""
        ...

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        """What was read, by the name that a user knows it by."""
        ...


class DeltaSource(Protocol):
    """A checked residual of which no weights are read yet.

    side: its shapes and facts, those of instruct; own_names: the class's name of every tensor;
    instruct_side: a folder with instruct's tokenizer
    and configs; tokens: instruct's; base_eos: what ends base's texts, ids of instruct's map or,
    where base has another, tokens; instruct_only: rows that are instruct's own (see
    vocabulary.PairPlan); recorded_norm: of all its elements, where it was written down; files:
    everything whose change changes it; left_out: what lies beside instruct's weights and is not in
    instruct_side, or will not be carried from there.
    """

    @property
    def side(self) -> Side: ...
    @property
    def own_names(self) -> Mapping[str, str]: ...
    def for_text(self, own_names: Mapping[str, str]) -> DeltaSource:
        """Its text part, if `own_names` are those of a text-only model that is a part of its own;
        else itself."""
        ...

    @property
    def instruct_side(self) -> Path: ...
    @property
    def tokens(self) -> TokenSide: ...
    @property
    def base_eos(self) -> Sequence[int | str]: ...
    @property
    def instruct_only(self) -> Sequence[int]: ...
    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def checkpoints(self) -> Sequence[Checkpoint]: ...
    @property
    def recorded_norm(self) -> float | None: ...
    @property
    def left_out(self) -> Sequence[str]: ...
    def opened(self, *, once: bool = True) -> AbstractContextManager[OpenDelta]:
        """once: no element is read a second time."""
        ...


@dataclass(frozen=True)
class StoredDelta:
    """A residual from disk, in any of its storages. text_only: its text part."""

    artifact: ResidualArtifact
    text_only: bool = False

    @property
    def side(self) -> Side:
        tensors = self.artifact.manifest.tensors
        shapes = {name: tensors[name].shape for name in self.own_names}
        return Side("residual", shapes, self.artifact.config, self._class_names.rows_by_name())

    @property
    def own_names(self) -> Mapping[str, str]:
        return self._class_names.names

    def for_text(self, own_names: Mapping[str, str]) -> StoredDelta:
        holds = self._class_names.holds_text_of(own_names.values())
        return replace(self, text_only=True) if holds else self

    @cached_property
    def _class_names(self) -> ClassNames:
        found = self.artifact.class_names
        return found.text_part() if self.text_only else found

    @property
    def instruct_side(self) -> Path:
        return self.artifact.instruct_folder

    @property
    def tokens(self) -> TokenSide:
        return self._tokens

    @cached_property
    def _tokens(self) -> TokenSide:
        return TokenSide.read(self.instruct_side)

    @property
    def base_eos(self) -> Sequence[int | str]:
        base = self.artifact.manifest.base
        return base.eos_token_ids if base.eos_tokens is None else base.eos_tokens

    @property
    def instruct_only(self) -> Sequence[int]:
        return self.artifact.manifest.instruct_only

    @property
    def files(self) -> Sequence[Path]:
        corrections = self.artifact.path / CORRECTIONS_FILE
        return [
            self.artifact.path / MANIFEST_FILE,
            *(shard.path for shard in self.artifact.shards),
            *([corrections] if corrections.is_file() else []),
        ]

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        return ()

    @property
    def recorded_norm(self) -> float | None:
        manifest = self.artifact.manifest
        exact = manifest.storage == EXACT_STORAGE and not manifest.instruct_only
        exact = exact and not self.text_only
        return manifest.residual_norm if exact else None

    @property
    def left_out(self) -> Sequence[str]:
        return self.artifact.manifest.left_out

    @contextmanager
    def opened(self, *, once: bool = True) -> Generator[OpenStored]:
        with ShardReader(self.artifact.shards, once=once) as reader:
            yield OpenStored(self.artifact, reader)


@dataclass(frozen=True)
class PairDelta:
    """instruct - base, read from the two models while it is added.

    Raises CompatibilityError, when it is made, for models or tokens that do not belong together."""

    base: Checkpoint
    instruct: Checkpoint
    vocab_policy: VocabPolicy = "equal"

    def __post_init__(self) -> None:
        # The same models, instruct's text alone beside a base of text alone, by instruct's names.
        object.__setattr__(self, "instruct", text_part_for(self.base.own_names, self.instruct))
        object.__setattr__(self, "base", spelled_like(self.own_names, self.base))
        sides = side_of(self.base), side_of(self.instruct)
        require_match(*sides, rows_may_differ=True)
        if self.plan.identity:  # embedding and head may still differ in their rows
            require_match(*sides)

    @property
    def side(self) -> Side:
        return side_of(self.instruct)

    @property
    def own_names(self) -> Mapping[str, str]:
        return self.instruct.own_names

    def for_text(self, own_names: Mapping[str, str]) -> PairDelta:
        instruct = text_part_for(own_names, self.instruct)
        return self if instruct is self.instruct else replace(self, instruct=instruct)

    @property
    def tokens(self) -> TokenSide:
        return self._tokens

    @cached_property
    def _tokens(self) -> TokenSide:
        return TokenSide.read(self.instruct.path)

    @cached_property
    def base_tokens(self) -> TokenSide:
        return TokenSide.read(self.base.path, like=self.tokens)

    @cached_property
    def plan(self) -> PairPlan:
        """Which row of base belongs to which row of instruct."""
        if self.vocab_policy != "equal" and not self.base_tokens.same_ids(self.tokens):
            _ = self.base.rows, self.instruct.rows  # raises where they cannot be told
        return plan_pair(
            self.base_tokens,
            self.tokens,
            base_rows=side_of(self.base).num_rows,
            instruct_rows=side_of(self.instruct).num_rows,
            policy=self.vocab_policy,
        )

    @property
    def instruct_only(self) -> Sequence[int]:
        return self.plan.instruct_only

    @property
    def instruct_side(self) -> Path:
        return self.instruct.path

    @property
    def base_eos(self) -> Sequence[int | str]:
        if self.plan.identity:
            return eos_token_ids(self.base.path, self.base_tokens)
        return eos_tokens(self.base.path, self.base_tokens)

    @property
    def files(self) -> Sequence[Path]:
        return [shard.path for model in self.checkpoints for shard in model.shards]

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        return (self.base, self.instruct)

    @property
    def recorded_norm(self) -> float | None:
        return None

    @property
    def left_out(self) -> Sequence[str]:
        return left_out_of(self.instruct.path)

    @contextmanager
    def opened(self, *, once: bool = True) -> Generator[OpenPair]:
        with (
            ShardReader(self.base.shards, once=once) as base,
            ShardReader(self.instruct.shards, once=once) as instruct,
        ):
            yield OpenPair(self, base, instruct)


class OpenStored:
    """A stored residual with its shards open."""

    def __init__(self, artifact: ResidualArtifact, reader: ShardReader) -> None:
        self._artifact, self._reader = artifact, reader
        self._factors: dict[str, tuple[npt.NDArray[np.float32], Exact]] = {}
        self._lock = threading.Lock()

    def fetch(self, block: Block) -> None:
        if self._artifact.manifest.tensors[block.name].rank is None:
            self._reader.fetch(self._artifact.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        record = self._artifact.manifest.tensors[block.name]
        if record.rank is not None:
            left, right = self._read_factors(block.name)
            return low_rank_rows(left, right, block.start, block.stop), None
        delta = self._read(block)
        corrections = self._artifact.corrections(block)
        high = delta.astype(np.float64)
        if not corrections.count:
            return high, None
        at, low = corrections.index, np.zeros_like(high)
        high[at], low[at] = arithmetic.exact_sum(delta[at], corrections.value)
        return high, low

    def stored(self, block: Block) -> Exact:
        """The elements that the shards hold or their factors stand for, without corrections."""
        if self._artifact.manifest.tensors[block.name].rank is not None:
            return self.parts(block)[0]
        return self._read(block).astype(np.float64)

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        record = self._artifact.manifest.tensors[block.name]
        fp32_holds_it = record.rank is None and not self._artifact.corrections(block).count
        if fp32_holds_it and target.dtype != np.float16:
            return kernels.add(target, self._read(block), alpha, out)
        return add_parts(target, self.parts(block), alpha, out)

    def base_mean(self, name: str) -> Mean:
        entry = self._artifact.tensors[name + BASE_MEAN]
        return to_float64(self._reader.read(entry, 0, entry.num_elements))

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        if self._artifact.manifest.tensors[block.name].rank is not None:
            return {"residual": self.parts(block)[0].astype(np.float32)}
        return {"residual": self._read(block)}

    def _read(self, block: Block) -> npt.NDArray[np.float32]:
        entry = self._artifact.tensors[block.name]
        return to_float32(self._reader.read_reusing(entry, block.start, block.stop))

    def _read_factors(self, name: str) -> tuple[npt.NDArray[np.float32], Exact]:
        """Both factors of a matrix; those of the last two matrices are kept, for threads that are
        still in the one before."""
        with self._lock:
            if name not in self._factors:
                entries = [self._artifact.tensors[name + side] for side in (LEFT, RIGHT)]
                left, right = (to_float32(self._reader.read_whole(entry)) for entry in entries)
                kept = list(self._factors.items())[-1:]
                self._factors = dict([*kept, (name, (left, right.astype(np.float64)))])
            return self._factors[name]


class OpenPair:
    """base and instruct with their files open; `aligned` tensors are matched row by row."""

    def __init__(self, pair: PairDelta, base: ShardReader, instruct: ShardReader) -> None:
        self.base, self.instruct, self.plan = pair.base, pair.instruct, pair.plan
        self._base, self._instruct = base, instruct
        self.aligned = frozenset[str](() if pair.plan.identity else pair.instruct.rows)

    def fetch(self, block: Block) -> None:
        self._instruct.fetch(self.instruct.tensors[block.name], block.start, block.stop)
        if block.name not in self.aligned:
            self._base.fetch(self.base.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        base, instruct = self.read(block)
        left, right = to_float32(instruct), to_float32(base)
        high, low = arithmetic.exact_sum(left, -right)
        high[(left == 0) & (right == 0) & np.signbit(left)] = -0.0  # as in a stored residual
        return high, low if low.any() else None

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        if target.dtype != np.float16:
            base, instruct = (
                to_float32(raw) if raw.dtype == np.float16 else raw for raw in self.read(block)
            )
            sums, num_inexact = kernels.add_difference(target, base, instruct, alpha, out)
            if not num_inexact:
                return sums
        return add_parts(target, self.parts(block), alpha, out)

    def base_mean(self, name: str) -> Mean:
        entry = self.base.tensors[name]

        def read(start: int, stop: int) -> npt.NDArray[np.float32]:
            return to_float32(self._base.read(entry, start, stop))

        return mean_of_rows(read, self.plan.common_rows, width_of(entry))

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        base, instruct = self.read(block)
        return {"base": base, "instruct": instruct}

    def read(self, block: Block) -> tuple[Raw, Raw]:
        """Raw elements of (base, instruct), valid until this thread's next call; base is 0 in rows
        that only instruct has."""
        base = self.base.tensors[block.name]
        instruct = self.instruct.tensors[block.name]
        other = self._instruct.read_reusing(instruct, block.start, block.stop)
        if block.name not in self.aligned:
            return self._base.read_reusing(base, block.start, block.stop), other
        out = np.empty(block.num_elements, dtype=RAW_DTYPES[base.dtype])
        return gather(self._base, base, block, self.plan.base_row, out), other


def add_parts(target: Raw, parts: tuple[High, Low | None], alpha: float, out: Raw) -> MergeSums:
    """out = target + alpha * (high + low), rounded once to target's dtype."""
    high, low = parts
    start, move = to_float64(target), alpha * high
    exact = start + move
    if low is not None:
        exact = np.where(low != 0.0, exact + alpha * low, exact)
        move = move + alpha * low
    return place(target, exact, move, out)


def place(target: Raw, exact: Exact, move: Exact, out: Raw) -> MergeSums:
    """out = exact, rounded once to target's dtype, which may be fp16; `move` is what made it of
    target."""
    if target.dtype != np.float16:
        return kernels.place(target, exact, move, out)
    out[:] = arithmetic.round_once(exact, "F16")
    start, merged = to_float64(target), to_float64(out)
    moved = move != 0.0
    return MergeSums(
        target_squared=kernels.dot(start, start),
        move_squared=kernels.dot(move, move),
        target_dot_move=kernels.dot(start, move),
        num_moved=int(np.count_nonzero(moved)),
        num_lost=int(np.count_nonzero(moved & (merged == start))),
        num_not_finite=int(np.count_nonzero(~np.isfinite(merged))),
    )
