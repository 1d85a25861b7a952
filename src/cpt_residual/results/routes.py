"""What each variant costs beyond the released pair, from the declared models.

The released pair is what exists before the experiment starts: `roles.base`, `roles.instruct`,
every model that is initialised, downloaded or pre-trained, and the instruct end of a residual
whose base end is released. A route is all further work on the way to a variant, each step once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cpt_residual.config.contrasts import VariantWords
from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    AppliedModel,
    Model,
    Residual,
    Roles,
    TrainedModel,
    TrainRecipe,
)
from cpt_residual.results.document import RouteStep, Training, Variant, kind_of

_APPLY_FLOPS_PER_PARAMETER = 2.0  # one product with alpha, one addition
_RESIDUAL_FLOPS_PER_PARAMETER = 1.0  # one subtraction


@dataclass(frozen=True)
class Declared:
    """The part of an experiment that says how its models come about, and how they are shown."""

    models: Mapping[str, Model]
    residuals: Mapping[str, Residual]
    recipes: Mapping[str, TrainRecipe]
    packs: Mapping[str, Pack]
    roles: Roles
    words: Mapping[str, VariantWords]


def describe_variants(
    names: Iterable[str], declared: Declared, trainings: Iterable[Training]
) -> tuple[Variant, ...]:
    """Kind, alpha, route and need of instruction data of every variant, in the given order."""
    walker = _Routes(declared, {training.model: training for training in trainings})
    return tuple(walker.variant(name) for name in names)


class _Routes:
    def __init__(self, declared: Declared, trainings: Mapping[str, Training]) -> None:
        self._declared = declared
        self._trainings = trainings
        self._parameters = max((t.num_parameters for t in trainings.values()), default=0)

    def variant(self, name: str) -> Variant:
        declared, steps = self._declared, self._route(name)
        model, words = declared.models.get(name), declared.words.get(name)
        return Variant(
            name=name,
            label=words.label if words is not None and words.label else name,
            kind=kind_of(name, declared.roles, declared.words),
            alpha=model.alpha if isinstance(model, AppliedModel) else None,
            route=None if steps is None else tuple(steps.values()),
            needs_instruction_data=self._needs_dialogues(name),
        )

    def _parts(self, model: AppliedModel) -> tuple[str, str, str]:
        residual = self._declared.residuals[model.residual]
        return model.target, residual.base, residual.instruct

    def _released(self, name: str) -> bool:
        declared, model = self._declared, self._declared.models.get(name)
        if name in (declared.roles.base, declared.roles.instruct) or not isinstance(
            model, (TrainedModel, AppliedModel)
        ):
            return True
        if isinstance(model, AppliedModel):
            return False
        if declared.recipes[model.recipe].stage == "pretrain":
            return self._released(model.start)
        return any(
            residual.instruct == name and residual.base != name and self._released(residual.base)
            for residual in declared.residuals.values()
        )

    def _route(self, name: str) -> dict[str, RouteStep] | None:
        """Steps by name in the order of work; None when the cost of one is unknown."""
        model = self._declared.models.get(name)
        if self._released(name):
            return {}
        if isinstance(model, TrainedModel):
            parts, steps = (model.start,), self._training_step(name, model)
        else:
            assert isinstance(model, AppliedModel)
            parts, steps = self._parts(model), self._applying_steps(name, model)
        routes = [self._route(part) for part in parts]
        if steps is None or None in routes:
            return None
        before = {key: step for route in routes for key, step in (route or {}).items()}
        return before | {step.name: step for step in steps}

    def _training_step(self, name: str, model: TrainedModel) -> list[RouteStep] | None:
        training = self._trainings.get(name)
        if training is None:
            return None
        stage = self._declared.recipes[model.recipe].stage
        return [RouteStep(name=f"{stage}:{name}", flops=training.flops, tokens=training.tokens)]

    def _applying_steps(self, name: str, model: AppliedModel) -> list[RouteStep] | None:
        if not self._parameters:
            return None
        work = (
            (f"residual:{model.residual}", _RESIDUAL_FLOPS_PER_PARAMETER),
            (f"apply:{name}", _APPLY_FLOPS_PER_PARAMETER),
        )
        return [
            RouteStep(name=what, flops=each * self._parameters, tokens=0) for what, each in work
        ]

    def _needs_dialogues(self, name: str) -> bool:
        model = self._declared.models.get(name)
        if self._released(name):
            return False
        if isinstance(model, AppliedModel):
            return any(self._needs_dialogues(part) for part in self._parts(model))
        assert isinstance(model, TrainedModel)
        pack = self._declared.packs[self._declared.recipes[model.recipe].pack]
        dialogues = any(source.format == "chat" for source in pack.sources)
        return dialogues or self._needs_dialogues(model.start)
