"""Validated inputs of a merge: residual, target and base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from cpt_residual.config.merging import PLAIN_ADDITION, MergeRecipe
from cpt_residual.errors import ConfigError
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import require_equal_aliases
from cpt_residual.weights.maths.strengths import names_parts
from cpt_residual.weights.merge.vocab_rules import require_plain
from cpt_residual.weights.residual.source import DeltaSource
from cpt_residual.weights.tokens import chat_contract
from cpt_residual.weights.tokens.compatibility import require_match, side_of
from cpt_residual.weights.tokens.matching import spelled_like
from cpt_residual.weights.tokens.vocab_alignment import RowPlan, plan_target


@dataclass(frozen=True)
class Addition:
    """A residual that is added to `target`. `base` is the model that CPT made `target` from.

    Raises ConfigError for a recipe that needs the base without one."""

    target: Checkpoint
    source: DeltaSource
    recipe: MergeRecipe = PLAIN_ADDITION
    base: Checkpoint | None = None

    def __post_init__(self) -> None:
        _require_base(self.recipe, self.base)
        object.__setattr__(self, "source", self.source.for_text(self.target.own_names))
        own_names = self.source.own_names
        for role, model in (("target", self.target), ("base", self.base)):
            if model is not None:  # the same model by the residual's names
                object.__setattr__(self, role, spelled_like(own_names, model))

    @cached_property
    def untied(self) -> Mapping[str, str]:
        """Tensors of the target that the residual's family ties and the target does not, to the
        tensor of the residual that each gets: what a tied instruct differs by in both."""
        name_of = {own: name for name, own in self.source.own_names.items()}
        in_target = {own: name for name, own in self.target.own_names.items()}
        return {
            in_target[a]: name_of[b]
            for a, b in self.source.tied.items()
            if a in in_target and a not in name_of and b in name_of
        }

    @property
    def notes(self) -> list[str]:
        """What records say about tensors that get the residual of another."""
        return [
            f"target: {name} is not tied to {owner} as in the residual's models, and gets the "
            "same residual"
            for name, owner in self.untied.items()
        ]

    @property
    def rows(self) -> Mapping[str, RowPart]:
        """The target's tensors with one row per token; none where nothing depends on them. Raises
        CompatibilityError where something does and the class cannot be asked."""
        needed = names_parts(self.recipe) or not self.plan.identity
        return self.target.rows if needed else {}

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Every model that is read."""
        return [self.target, *self.source.checkpoints, *([self.base] if self.base else [])]

    @property
    def base_read(self) -> Checkpoint | None:
        """The base, for recipes that need its weights."""
        return self.base if self.recipe.needs_base else None

    @cached_property
    def target_tokens(self) -> TokenSide:
        return TokenSide.read(self.target.path)

    @cached_property
    def plan(self) -> RowPlan:
        """Which row goes where, from headers and tokenizers alone. Raises CompatibilityError when
        target and residual do not fit."""
        source, target = self.source.side.untied(self.untied), side_of(self.target)
        require_match(source, target, rows_may_differ=True)
        same_tokens = self.source.tokens.ids == self.target_tokens.ids
        if self.recipe.vocab_policy != "equal" and not same_tokens:
            _ = self.target.rows  # raises where they cannot be told
        plan = plan_target(
            self.source.tokens,
            self.target_tokens,
            instruct_only=self.source.instruct_only,
            residual_rows=source.num_rows,
            target_rows=target.num_rows,
            policy=self.recipe.vocab_policy,
        )
        if plan.identity:  # embedding and head may still differ in their rows
            require_match(source, target)
        else:
            require_plain(self.recipe)
        return plan

    def require_base(self) -> None:
        """Raises CompatibilityError for a base that cannot be the target's."""
        if self.base is not None:
            require_match(side_of(self.base).untied(self.untied), side_of(self.target))

    def require_fit(self, *, threads: int) -> None:
        """Raises CompatibilityError unless all models belong together. Reads tensors that are
        stored twice."""
        _ = self.plan
        self.require_base()
        base = self.base
        tokens = self.source.tokens
        if base is not None and TokenSide.read(base.path).ids != tokens.ids:
            chat_contract.require_same_tokens_as(
                base.path, self.target.path, labels=("base", "target")
            )
        seen: list[Checkpoint] = []
        for model in self.checkpoints:
            if model not in seen:
                require_equal_aliases(model, threads=threads)
                seen.append(model)


def _require_base(recipe: MergeRecipe, base: Checkpoint | None) -> None:
    if base is not None or not recipe.needs_base:
        return
    choices = recipe.beyond_addition.items()
    raise ConfigError(
        "This recipe needs the base that CPT started from",
        problems=[
            f"{name}: {value}"
            for name, value in choices
            if name != "method" or recipe.method.needs_base
        ],
        remedy="Nothing was done. Name it (--target-base), or leave these at their defaults.",
    )
