"""Evaluation prompts for contamination checks: `references.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cpt_residual.base_model import Frozen
from cpt_residual.config.suites import SuiteBase
from cpt_residual.core.rates import SECONDS_PER_TASK_DATA
from cpt_residual.core.stage import (
    ONE_CORE,
    ArtifactRef,
    Cost,
    Metrics,
    Resources,
    RunContext,
    Stage,
)
from cpt_residual.data.filters.references import REFERENCES_FILE, write_references
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.scorer import harness_version

_BYTES_PER_TASK = 2**20


class ReferencesRecipe(Frozen):
    """Whose questions; lm-eval's version stands for its task files. What the data sets of the tasks
    hold is in the content hash alone, as it is for every score."""

    tasks: tuple[str, ...]
    probes: tuple[str, ...]
    lm_eval: str


@dataclass(frozen=True)
class References:
    """The questions of all stock tasks and world probes of `suites`. Held-out suites ask none: the
    split keeps their documents out of training.

    `world`: where `world` suites have their probes from.
    """

    suites: Mapping[str, SuiteBase]
    world: Stage | None

    name: ClassVar[str] = "references"
    version: ClassVar[int] = 1

    @property
    def node(self) -> str:
        return "references"

    @property
    def needs_network(self) -> bool:
        """The data of stock tasks comes from the hub, unless its cache has it."""
        return bool(self._tasks())

    def recipe(self) -> ReferencesRecipe:
        return ReferencesRecipe(
            tasks=self._tasks(),
            probes=self._probes(),
            lm_eval=harness_version(),
        )

    def inputs(self) -> Mapping[str, Stage]:
        if not self._probes():
            return {}
        if self.world is None:
            raise ConfigError(
                "references: a suite asks for probes of the world, but there is no world",
                remedy="Add `world` to the experiment, or take the suite out.",
            )
        return {"world": self.world}

    def describe(self) -> str:
        recipe = self.recipe()
        return ", ".join([*recipe.tasks, *recipe.probes])

    def cost(self) -> Cost:
        num_tasks = len(self._tasks())
        return Cost(
            seconds=num_tasks * SECONDS_PER_TASK_DATA, disk_bytes=(num_tasks + 1) * _BYTES_PER_TASK
        )

    def resources(self) -> Resources:
        return ONE_CORE

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.evaluation.prompts import prompts_of

        recipe, world = self.recipe(), inputs.get("world")
        (work / "out").mkdir(parents=True, exist_ok=True)
        counts = write_references(
            work / "out" / REFERENCES_FILE,
            prompts_of(
                recipe.tasks, recipe.probes, probes_dir=world.path / "probes" if world else None
            ),
        )
        total = sum(counts.values())
        ctx.progress(total, total, "questions")
        return {f"num_questions/{task}": number for task, number in counts.items()}

    def _tasks(self) -> tuple[str, ...]:
        suites = self.suites.values()
        return tuple(sorted({task.task for suite in suites for task in suite.stock_tasks()}))

    def _probes(self) -> tuple[str, ...]:
        suites = self.suites.values()
        return tuple(sorted({probe for suite in suites for probe in suite.world_probes()}))
