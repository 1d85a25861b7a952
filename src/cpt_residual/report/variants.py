"""Role and cost of each variant, from the declared models.

The released pair is what exists before the experiment starts: `roles.base`, `roles.instruct`,
every model that is initialised, downloaded or pre-trained, and the instruct end of a residual
whose base end is released. A route is all further work on the way to a variant, each step once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    AppliedModel,
    Model,
    Residual,
    Roles,
    TrainedModel,
    TrainRecipe,
)
from cpt_residual.report.facts import Kind, RoleNames, RouteStep, Training, Variant

_APPLY_FLOPS_PER_PARAMETER = 2.0  # one product with alpha, one addition
_RESIDUAL_FLOPS_PER_PARAMETER = 1.0  # one subtraction


@dataclass(frozen=True)
class Declared:
    """The part of an experiment that says how its models come about."""

    models: Mapping[str, Model]
    residuals: Mapping[str, Residual]
    recipes: Mapping[str, TrainRecipe]
    packs: Mapping[str, Pack]
    roles: Roles


def role_names(roles: Roles, variants: Iterable[str]) -> RoleNames:
    """The roles; an `instruct_cpt` that was not evaluated counts as absent."""
    evaluated = set(variants)
    naive = roles.instruct_cpt if roles.instruct_cpt in evaluated else None
    return RoleNames(roles.base, roles.instruct, roles.base_cpt, naive, roles.merged)


def describe_variants(
    names: Iterable[str], declared: Declared, trainings: Iterable[Training]
) -> tuple[Variant, ...]:
    """Kind, alpha, route and need of instruction data of every variant, in the given order."""
    walker = _Walker(declared, {training.model: training for training in trainings})
    return tuple(walker.variant(name) for name in names)


def new_domain_corpus(declared: Declared) -> str | None:
    """The text corpus that CPT adds: in the pack of `roles.base_cpt`, in no pack before it."""
    model = declared.models.get(declared.roles.base_cpt)
    if not isinstance(model, TrainedModel):
        return None
    seen = {name for key in _ancestors(model.start, declared) for name in _texts(key, declared)}
    fresh = [name for name in _texts(declared.roles.base_cpt, declared) if name not in seen]
    return fresh[0] if fresh else None


def _ancestors(key: str, declared: Declared) -> list[str]:
    found = [key]
    model = declared.models.get(key)
    while isinstance(model, TrainedModel):
        found.append(model.start)
        model = declared.models.get(model.start)
    return found


def _texts(key: str, declared: Declared) -> list[str]:
    model = declared.models.get(key)
    if not isinstance(model, TrainedModel):
        return []
    pack = declared.packs[declared.recipes[model.recipe].pack]
    return [source.corpus for source in pack.sources if source.format == "text"]


class _Walker:
    def __init__(self, declared: Declared, trainings: Mapping[str, Training]) -> None:
        self._declared = declared
        self._trainings = trainings
        self._parameters = max((t.num_parameters for t in trainings.values()), default=0)

    def variant(self, name: str) -> Variant:
        model = self._declared.models.get(name)
        alpha = model.alpha if isinstance(model, AppliedModel) else None
        steps = self._route(name)
        return Variant(
            name=name,
            kind=self._kind(name),
            alpha=alpha,
            route=None if steps is None else tuple(steps.values()),
            needs_instruction_data=self._needs_dialogues(name),
        )

    def _kind(self, name: str) -> Kind:
        roles, model = self._declared.roles, self._declared.models.get(name)
        core: dict[str | None, Kind] = {
            roles.merged: "merged",
            roles.instruct_cpt: "instruct_cpt",
            roles.base_cpt: "base_cpt",
            roles.instruct: "instruct",
            roles.base: "base",
        }
        if name in core:
            return core[name]
        if isinstance(model, AppliedModel):
            return self._applied_kind(model)
        if isinstance(model, TrainedModel) and not self._released(name):
            recipe = self._declared.recipes[model.recipe]
            if recipe.stage == "sft":
                return "sft"
            if self._dialogues(recipe):
                return "replay"
        return "control"

    def _applied_kind(self, model: AppliedModel) -> Kind:
        merged = self._declared.models.get(self._declared.roles.merged)
        if not isinstance(merged, AppliedModel) or model.target != merged.target:
            return "control"
        if model.residual != merged.residual:
            return "donor"
        if model.merge != merged.merge:
            return "control"
        return "alpha" if model.alpha != merged.alpha else "control"

    def _released(self, name: str) -> bool:
        roles, model = self._declared.roles, self._declared.models.get(name)
        if name in (roles.base, roles.instruct) or not isinstance(
            model, (TrainedModel, AppliedModel)
        ):
            return True
        if isinstance(model, AppliedModel):
            return False
        if self._declared.recipes[model.recipe].stage == "pretrain":
            return self._released(model.start)
        return any(
            residual.instruct == name and residual.base != name and self._released(residual.base)
            for residual in self._declared.residuals.values()
        )

    def _route(self, name: str) -> dict[str, RouteStep] | None:
        """Steps by name in the order of work; None when the cost of one is unknown."""
        if self._released(name):
            return {}
        model = self._declared.models[name]
        if isinstance(model, TrainedModel):
            training, before = self._trainings.get(name), self._route(model.start)
            if training is None or before is None:
                return None
            stage = self._declared.recipes[model.recipe].stage
            step = RouteStep(f"{stage}:{name}", training.flops, training.tokens)
            return before | {step.name: step}
        if not isinstance(model, AppliedModel) or not self._parameters:
            return None
        residual = self._declared.residuals[model.residual]
        steps: dict[str, RouteStep] = {}
        for part in (model.target, residual.base, residual.instruct):
            before = self._route(part)
            if before is None:
                return None
            steps |= before
        count = float(self._parameters)
        for label, flops in (
            (f"residual:{model.residual}", _RESIDUAL_FLOPS_PER_PARAMETER * count),
            (f"apply:{name}", _APPLY_FLOPS_PER_PARAMETER * count),
        ):
            steps[label] = RouteStep(label, flops, 0)
        return steps

    def _dialogues(self, recipe: TrainRecipe) -> bool:
        pack = self._declared.packs[recipe.pack]
        return any(source.format == "chat" for source in pack.sources)

    def _needs_dialogues(self, name: str) -> bool:
        if self._released(name):
            return False
        model = self._declared.models[name]
        if isinstance(model, TrainedModel):
            recipe = self._declared.recipes[model.recipe]
            return self._dialogues(recipe) or self._needs_dialogues(model.start)
        if isinstance(model, AppliedModel):
            residual = self._declared.residuals[model.residual]
            parts = (model.target, residual.base, residual.instruct)
            return any(self._needs_dialogues(part) for part in parts)
        return False
