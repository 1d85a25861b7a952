"""The report of an experiment: what was found, in tables, figures and plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    Experiment,
    Frozen,
    Goals,
    Model,
    PretrainedModel,
    Residual,
    Roles,
    TrainRecipe,
)
from cpt_residual.core.graph import Graph
from cpt_residual.core.rates import REPORT_MEMORY, SECONDS_TO_REPORT
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage

if TYPE_CHECKING:
    from cpt_residual.report.facts import ReportFacts, Training
    from cpt_residual.report.variants import Declared


class ReportRecipe(Frozen):
    """What decides the report besides the artifacts it reads."""

    experiment: str
    question: str
    seed: int
    variants: list[str]
    models: dict[str, Model]
    residuals: dict[str, Residual]
    recipes: dict[str, TrainRecipe]
    packs: dict[str, Pack]
    roles: Roles
    goals: Goals | None


@dataclass(frozen=True)
class Report:
    """report.md, results.csv, results.json, prompts.csv and figures/*.png; byte-deterministic.

    `evaluations`: variant -> its evaluation; `trainings`: model -> its training stage.
    """

    facts: ReportRecipe
    evaluations: Mapping[str, Stage]
    trainings: Mapping[str, Stage]
    geometry: Stage | None = None

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 2

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        *,
        evaluations: Mapping[str, Stage],
        trainings: Mapping[str, Stage],
        geometry: Stage | None,
    ) -> Self:
        """The report of `experiment` over the given stages."""
        recipe = ReportRecipe(
            experiment=experiment.name,
            question=experiment.question,
            seed=experiment.seed,
            variants=list(evaluations),
            models={key: _without_path(model) for key, model in experiment.models.items()},
            residuals=experiment.residuals,
            recipes=experiment.recipes,
            packs=experiment.packs,
            roles=experiment.roles,
            goals=experiment.goals,
        )
        return cls(recipe, evaluations, trainings, geometry)

    @property
    def node(self) -> str:
        return "report"

    def recipe(self) -> ReportRecipe:
        return self.facts

    def inputs(self) -> Mapping[str, Stage]:
        found = {f"evaluation:{name}": stage for name, stage in self.evaluations.items()}
        found |= {f"training:{name}": stage for name, stage in self.trainings.items()}
        return found | ({"geometry": self.geometry} if self.geometry else {})

    def cost(self) -> Cost:
        return Cost(seconds=SECONDS_TO_REPORT, disk_bytes=2_000_000)

    def resources(self) -> Resources:
        return Resources(memory_bytes=REPORT_MEMORY)

    def describe(self) -> str:
        return f"{len(self.evaluations)} variants"

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.report.write import write_report

        facts = self._facts(inputs)
        verdict = write_report(facts, work / "out", progress=ctx.progress)
        return {
            "outcome": verdict.outcome,
            "rows": len(facts.rows),
            "variants": len(facts.variants),
        }

    def _facts(self, inputs: Mapping[str, ArtifactRef]) -> ReportFacts:
        from cpt_residual.evaluation.results import read_results, read_samples
        from cpt_residual.report.facts import ReportFacts
        from cpt_residual.report.geometry import read_geometry
        from cpt_residual.report.measures import Scores
        from cpt_residual.report.pairs import (
            paired_sources,
            paired_tests,
            paired_variants,
            prompt_scores,
        )
        from cpt_residual.report.variants import (
            describe_variants,
            new_domain_corpus,
            role_names,
        )

        folders = {name: inputs[f"evaluation:{name}"].path for name in self.evaluations}
        declared, roles = self._declared(), role_names(self.facts.roles, self.evaluations)
        trainings = tuple(
            _training(name, inputs[f"training:{name}"], self.facts) for name in self.trainings
        )
        rows = tuple(row for folder in folders.values() for row in read_results(folder))
        variants = describe_variants(self.evaluations, declared, trainings)
        new_corpus = new_domain_corpus(declared)
        sources = paired_sources(Scores(rows, new_corpus=new_corpus))
        tasks = {task for task, _ in sources.values()}
        samples = {
            name: read_samples(folders[name], tasks=tasks)
            for name in paired_variants(roles, variants)
            if name in folders
        }
        provenance, notes = _provenance(self.facts, inputs, folders)
        geometry = inputs.get("geometry")
        return ReportFacts(
            experiment=self.facts.experiment,
            question=self.facts.question,
            seed=self.facts.seed,
            roles=roles,
            variants=variants,
            rows=rows,
            differences=paired_tests(samples, sources, roles, variants),
            prompts=tuple(prompt_scores(samples, key, *sources[key]) for key in sources),
            trainings=trainings,
            geometry=read_geometry(geometry.path / "geometry.json", roles) if geometry else None,
            new_corpus=new_corpus,
            goals=self.facts.goals,
            provenance=provenance,
            lineage=self._lineage(),
            notes=notes,
        )

    def _declared(self) -> Declared:
        from cpt_residual.report.variants import Declared

        facts = self.facts
        return Declared(facts.models, facts.residuals, facts.recipes, facts.packs, facts.roles)

    def _lineage(self) -> str:
        merged = self.evaluations.get(self.facts.roles.merged)
        return "" if merged is None else Graph.of([merged]).lineage(merged.node)


def _without_path(model: Model) -> Model:
    """A local model is identified by its files' hashes (an input), not by where it lies."""
    if isinstance(model, PretrainedModel) and model.revision is None:
        return model.model_copy(update={"source": "local"})
    return model


def _training(model: str, ref: ArtifactRef, facts: ReportRecipe) -> Training:
    from cpt_residual.report.facts import TracePoint, Training

    declared = facts.models[model]
    stage = facts.recipes[declared.recipe].stage if declared.kind == "train" else ref.stage
    lines = (ref.path / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    lost = ref.metrics.get("lost_share")
    return Training(
        model=model,
        stage=stage,
        tokens=int(ref.metrics["tokens"]),
        steps=int(ref.metrics["steps"]),
        flops=float(ref.metrics["flops"]),
        num_parameters=int(ref.metrics["num_parameters"]),
        final_loss=float(ref.metrics["final_loss"]),
        lost_share=None if lost is None else float(lost),
        trace=tuple(TracePoint(int(p["tokens"]), float(p["loss"])) for p in points),
    )


def _provenance(
    facts: ReportRecipe, inputs: Mapping[str, ArtifactRef], folders: Mapping[str, Path]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Models, data and versions as (what, value) lines; notes on facts that differ by variant."""
    from cpt_residual.report.provenance import data_lines, environment_lines, model_lines

    weights = {
        name: (inputs[f"training:{name}"].fingerprint, inputs[f"training:{name}"].content_hash)
        for name in facts.models
        if f"training:{name}" in inputs
    }
    documents = {
        name: json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        for name, folder in folders.items()
    }
    environment, notes = environment_lines(documents)
    lines = [("seed", str(facts.seed)), *model_lines(facts.models, weights)]
    return (*lines, *data_lines(facts.packs, facts.recipes), *environment), notes
