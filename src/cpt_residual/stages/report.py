"""The report of an experiment: what was found, in tables, figures and plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cpt_residual.config.contrasts import ContrastFamily, Kind, VariantWords, VerdictRule
from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    Experiment,
    Frozen,
    Goals,
    Model,
    PretrainedModel,
    Residual,
    Roles,
    Suite,
    TrainRecipe,
)
from cpt_residual.core.graph import Graph
from cpt_residual.core.rates import REPORT_MEMORY, SECONDS_TO_REPORT
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage

if TYPE_CHECKING:
    from cpt_residual.report.work_figures import TracePoint
    from cpt_residual.report.write import Findings
    from cpt_residual.results.document import Training
    from cpt_residual.results.routes import Declared
    from cpt_residual.results.table import ResultTable


_MARGIN = 0.05
"""Loss up to which a score counts as kept, where no verdict states it."""


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
    suites: dict[str, Suite]
    roles: Roles
    words: dict[str, VariantWords]
    contrasts: dict[str, ContrastFamily]
    verdict: VerdictRule | None
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
    version: ClassVar[int] = 3

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
            suites={key: experiment.suites[key] for key in experiment.evaluation.suites},
            roles=experiment.roles,
            words=experiment.variants,
            contrasts=experiment.families,
            verdict=experiment.verdict,
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

        findings = self._findings(inputs)
        verdict = write_report(findings, work / "out", progress=ctx.progress)
        return {
            "outcome": verdict.outcome,
            "rows": len(findings.results.table.rows),
            "variants": len(findings.results.variants),
        }

    def _findings(self, inputs: Mapping[str, ArtifactRef]) -> Findings:
        from cpt_residual.report.figures import Pictured
        from cpt_residual.report.geometry import core_geometry
        from cpt_residual.report.write import Findings
        from cpt_residual.results.contrasts import make_families
        from cpt_residual.results.document import Results
        from cpt_residual.results.goals import check_goals
        from cpt_residual.results.outcomes import read_outcomes
        from cpt_residual.results.routes import describe_variants
        from cpt_residual.weights.analysis.geometry import GeometryReport

        facts = self.facts
        folders = {name: inputs[f"evaluation:{name}"].path for name in self.evaluations}
        naive = facts.roles.instruct_cpt if facts.roles.instruct_cpt in folders else None
        roles = facts.roles.model_copy(update={"instruct_cpt": naive})
        trainings = {
            name: _training(name, inputs[f"training:{name}"], facts) for name in self.trainings
        }
        variants = describe_variants(folders, self._declared(roles), trainings.values())
        table = self._table(folders)
        outcomes = read_outcomes(folders, table)
        kinds: dict[str, Kind] = {variant.name: variant.kind for variant in variants}
        margin = facts.verdict.margin if facts.verdict else _MARGIN
        provenance, notes = _provenance(facts, inputs, folders)
        ref = inputs.get("geometry")
        measured = ref and GeometryReport.model_validate_json(
            (ref.path / "geometry.json").read_bytes()
        )
        results = Results(
            experiment=facts.experiment,
            question=facts.question,
            seed=facts.seed,
            roles=roles,
            variants=variants,
            table=table,
            declared=facts.contrasts,
            margin=margin,
            answered_by=facts.verdict.contrasts if facts.verdict else None,
            families=make_families(facts.contrasts, kinds, table.measures, outcomes, margin=margin),
            goals=check_goals(facts.goals, table, roles),
            trainings=tuple(trainings.values()),
            geometry=core_geometry(measured, roles) if measured else None,
            provenance=provenance,
            lineage=self._lineage(),
            notes=notes,
        )
        traces = {name: _trace(inputs[f"training:{name}"]) for name in self.trainings}
        return Findings(results, outcomes, Pictured(traces, measured.cells if measured else ()))

    def _table(self, folders: Mapping[str, Path]) -> ResultTable:
        from cpt_residual.evaluation.results import read_results
        from cpt_residual.results.table import ResultTable, Score

        declared = {
            measure.name: (key, measure)
            for key, suite in self.facts.suites.items()
            for measure in suite.measures(key)
        }
        suite_of = {measure.task: key for key, measure in declared.values()}
        rows = (
            Score(suite=suite_of.get(row.task, ""), **vars(row))
            for folder in folders.values()
            for row in read_results(folder)
        )
        return ResultTable.of(rows, (m for _, m in declared.values()), list(folders))

    def _declared(self, roles: Roles) -> Declared:
        from cpt_residual.results.routes import Declared

        facts = self.facts
        return Declared(
            facts.models, facts.residuals, facts.recipes, facts.packs, roles, facts.words
        )

    def _lineage(self) -> str:
        merged = self.evaluations.get(self.facts.roles.merged)
        return "" if merged is None else Graph.of([merged]).lineage(merged.node)


def _without_path(model: Model) -> Model:
    """A local model is identified by its files' hashes (an input), not by where it lies."""
    if isinstance(model, PretrainedModel) and model.revision is None:
        return model.model_copy(update={"source": "local"})
    return model


def _training(model: str, ref: ArtifactRef, facts: ReportRecipe) -> Training:
    from cpt_residual.results.document import Training

    declared = facts.models[model]
    stage = facts.recipes[declared.recipe].stage if declared.kind == "train" else ref.stage
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
    )


def _trace(ref: ArtifactRef) -> list[TracePoint]:
    from cpt_residual.report.work_figures import TracePoint

    lines = (ref.path / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    points = (json.loads(line) for line in lines)
    return [TracePoint(int(point["tokens"]), float(point["loss"])) for point in points]


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
