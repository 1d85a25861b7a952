"""Residual sources: stored on disk, or computed on the fly from base and instruct.

Both give the same bits for the same pair. `exact` is what methods compute with, `add` plain
addition in one pass. Opened sources may be used by several threads.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cpt_residual.config.merging import EXACT_STORAGE, VocabPolicy
from cpt_residual.modeling.class_names import ClassNames
from cpt_residual.modeling.side_files import left_out_of
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import ShardReader
from cpt_residual.weights.residual.open_delta import OpenDelta, OpenPair, OpenStored
from cpt_residual.weights.residual.residual_format import (
    CORRECTIONS_FILE,
    MANIFEST_FILE,
    ResidualArtifact,
)
from cpt_residual.weights.tokens.chat_contract import eos_token_ids, eos_tokens
from cpt_residual.weights.tokens.compatibility import Side, require_match, side_of
from cpt_residual.weights.tokens.matching import spelled_like, text_part_for
from cpt_residual.weights.tokens.vocab_alignment import (
    PairPlan,
    plan_pair,
)


class DeltaSource(Protocol):
    """A checked residual of which no weights are read yet.

    side: its shapes and facts, those of instruct; own_names: the class's name of every tensor;
    tied: the class's names of tied tensors, to those that they repeat; instruct_side: a folder with
    instruct's tokenizer and configs; tokens: instruct's; base_eos: what ends base's texts, ids of
    instruct's map or, where base has another, tokens; instruct_only: rows that are instruct's own
    (see vocabulary.PairPlan); recorded_norm: of all its elements, where it was written down; files:
    everything whose change changes it; left_out: what lies beside instruct's weights and is not in
    instruct_side, or will not be carried from there.
    """

    @property
    def side(self) -> Side: ...
    @property
    def own_names(self) -> Mapping[str, str]: ...
    @property
    def tied(self) -> Mapping[str, str]: ...
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

    @property
    def tied(self) -> Mapping[str, str]:
        return self._class_names.tied

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

    @property
    def tied(self) -> Mapping[str, str]:
        return self.instruct.class_names.tied

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
        return TokenSide.read(self.base.path)

    @cached_property
    def plan(self) -> PairPlan:
        """Which row of base belongs to which row of instruct."""
        if self.vocab_policy != "equal" and self.base_tokens.ids != self.tokens.ids:
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
            yield OpenPair(self.base, self.instruct, self.plan, (base, instruct))
