"""The report stage on published evaluations, trainings and geometry, without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from cpt_residual.config.contrasts import VerdictRule
from cpt_residual.config.measures import Measure
from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    AppliedModel,
    Evaluation,
    Experiment,
    Paths,
    PretrainedModel,
    Residual,
    TrainedModel,
    TrainRecipe,
)
from cpt_residual.core.hashing import plain
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, RunContext, Stage
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.results import EvaluationResult, ResultRow, Sample, write_evaluation
from cpt_residual.results.document import read_results
from cpt_residual.results.outcomes import read_outcomes, read_prompts
from cpt_residual.results.table import ResultTable, Score
from cpt_residual.stages.report import Report, ReportRecipe
from cpt_residual.suites.world import WorldSuite
from cpt_residual.weights.analysis.geometry import GeometryRow
from support.report_scenarios import FAMILIES, STRICT, SUCCESS, facts

VARIANTS = ("base", "instruct", "base_cpt", "instruct_cpt", "base_cpt_residual")


@dataclass(frozen=True)
class Published:
    """A stage whose artifact lies in `folder`."""

    node: str
    name: ClassVar[str] = "published"
    version: ClassVar[int] = 1
    needs: Mapping[str, Stage] = field(default_factory=dict[str, Stage])

    def recipe(self) -> Paths:
        return Paths(root="x")

    def inputs(self) -> Mapping[str, Stage]:
        return self.needs

    def cost(self) -> Cost:
        return Cost()

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        raise NotImplementedError


def experiment(where: str = "/models") -> Experiment:
    pack = Pack.model_validate(
        {
            "tokenizer": "base",
            "sequence_length": 128,
            "token_budget": 1024,
            "sources": [{"corpus": "new_domain"}],
        }
    )
    recipe = TrainRecipe(stage="cpt", pack="cpt", global_batch_tokens=256, learning_rate=1e-4)
    return Experiment(
        name="small",
        question="Does it hold?",
        seed=0,
        corpora={},
        packs={"cpt": pack},
        recipes={"cpt": recipe},
        models={
            "base": PretrainedModel(kind="pretrained", source=f"{where}/base"),
            "instruct": PretrainedModel(kind="pretrained", source="org/x", revision="a" * 40),
            "base_cpt": TrainedModel(kind="train", start="base", recipe="cpt"),
            "instruct_cpt": TrainedModel(kind="train", start="instruct", recipe="cpt"),
            "base_cpt_residual": AppliedModel(kind="apply", target="base_cpt", residual="main"),
        },
        residuals={"main": Residual(base="base", instruct="instruct")},
        suites={
            "world": WorldSuite(kind="world", probes=["instruction_following"], max_new_tokens=8)
        },
        evaluation=Evaluation(
            variants=list(VARIANTS), suites=["world"], chat_template_of="instruct"
        ),
        contrasts={"kept": FAMILIES["kept"], "naive": FAMILIES["naive"]},
        verdict=VerdictRule(contrasts="kept", margin=0.05),
        paths=Paths(root="runs"),
    )


def report(given: Experiment | None = None) -> Report:
    return Report.of(
        given or experiment(),
        evaluations={name: Published(f"evaluate:{name}") for name in VARIANTS},
        trainings={name: Published(f"cpt:{name}") for name in ("base_cpt", "instruct_cpt")},
        geometry=Published("geometry"),
    )


def ref(folder: Path, **metrics: float) -> ArtifactRef:
    return ArtifactRef("s", folder.name, "f" * 64, "c" * 64, folder, metrics)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, ArtifactRef]:
    """Artifacts as the other stages publish them, with the scores of the success scenario."""
    lines = {name: SUCCESS[name] for name in VARIANTS}
    made = facts(lines)
    prompts = made.outcomes.values[STRICT]
    found: dict[str, ArtifactRef] = {}
    for name in VARIANTS:
        folder = tmp_path / f"evaluate-{name}"
        rows = tuple(
            ResultRow(**row.model_dump(exclude={"suite"}))
            for row in made.results.table.rows
            if row.variant == name
        )
        samples = tuple(
            Sample(
                task="instruction_following",
                doc_id=int(prompt.partition("-")[2]),
                prompt_sha256=f"{int(prompt.partition('-')[2]):064x}",
                metrics={
                    "prompt_level_strict_acc": value,
                    "prompt_level_strict_acc_open": value,
                    "inst_level_strict_acc": [value, 1.0],
                },
                stop_reason="<|end|>",
                num_tokens=5,
                response="x",
            )
            for prompt, value in prompts[name].items()
        )
        versions = {"lm_eval": "0.4.13", "tasks": {"instruction_following": {"version": 1}}}
        write_evaluation(EvaluationResult(name, rows, samples, versions), folder)
        found[f"evaluation:{name}"] = ref(folder)
    for name in ("base_cpt", "instruct_cpt"):
        folder = tmp_path / f"cpt-{name}"
        folder.mkdir()
        trace = [{"step": i, "tokens": 256 * i, "loss": 2.0 / i} for i in range(1, 5)]
        (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trace))
        found[f"training:{name}"] = ref(
            folder, tokens=1024, steps=4, flops=1e9, num_parameters=1000, final_loss=0.5
        )
    folder = tmp_path / "geometry"
    folder.mkdir()
    total: dict[str, float] = dict.fromkeys(GeometryRow.model_fields, 0.1) | {"num_parameters": 10}
    tensor = {**total, "name": "model.layers.0.mlp.up_proj.weight", "layer": 0, "module": "mlp"}
    geometry = {"total": total, "modules": {}, "layers": {}, "tensors": [tensor]}
    (folder / "geometry.json").write_text(json.dumps(geometry))
    found["geometry"] = ref(folder)
    return found


def test_the_report_is_built_from_published_artifacts(
    inputs: dict[str, ArtifactRef], tmp_path: Path
) -> None:
    metrics = report().build(inputs, tmp_path / "work", RunContext(run_dir=tmp_path))
    out = tmp_path / "work" / "out"
    assert metrics["outcome"] == "lost"
    results = read_results(out)
    assert [family.name for family in results.families] == ["kept", "naive"]
    assert {row.suite for row in results.table.rows} == {"world", ""}
    text = (out / "report.md").read_text()
    assert "* evaluation, lm_eval: 0.4.13" in text
    assert "evaluate:base_cpt_residual (" in text  # lineage
    assert "model instruct: org/x at aaaa" in text
    assert set(read_prompts(out / "prompts.csv").values[STRICT]) == set(VARIANTS)
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "comparison",
        "per_type",
        "training",
        "cost",
    }


def test_different_prompts_are_refused(inputs: dict[str, ArtifactRef], tmp_path: Path) -> None:
    samples = inputs["evaluation:instruct"].path / "samples.jsonl"
    samples.write_text(samples.read_text().replace(f"{5:064x}", "e" * 64))
    with pytest.raises(EvaluationError, match="not asked the same prompts"):
        report().build(inputs, tmp_path / "work", RunContext(run_dir=tmp_path))


def stock(folder: Path, name: str, right: tuple[float, ...], score: float) -> Path:
    """An evaluation of a group of two stock tasks, as lm-eval scores them."""
    samples = tuple(
        Sample("mmlu_a" if i % 2 else "mmlu_b", i, f"{i:064x}", {"acc": value}, None, None, None)
        for i, value in enumerate(right)
    )
    rows = (ResultRow(name, "mmlu", "acc", score, 0.1, len(right)),)
    told = {"groups": {"mmlu": ["mmlu_a", "mmlu_b"]}}
    write_evaluation(EvaluationResult(name, rows, samples, told), folder / name)
    return folder / name


@pytest.mark.parametrize(("score", "paired"), [(0.5, True), (0.6, False)])
def test_groups_of_stock_tasks_are_paired_where_the_score_is_a_mean_over_prompts(
    score: float, paired: bool, tmp_path: Path
) -> None:
    measure = Measure(task="mmlu", metric="acc", label="MMLU", short="MMLU", role="old_knowledge")
    scores = {"a": (score, (1, 0, 1, 0)), "b": (score, (0, 0, 1, 1))}
    folders = {name: stock(tmp_path, name, right, s) for name, (s, right) in scores.items()}
    rows = [
        Score(variant=n, suite="s", task="mmlu", metric="acc", value=s, stderr=None, n=4)
        for n, (s, _) in scores.items()
    ]
    outcomes = read_outcomes(folders, ResultTable.of(rows, [measure], ["a", "b"]))
    pair = outcomes.pair("mmlu/acc", "a", "b")
    assert (pair is not None) == paired
    if pair is not None:
        assert sorted(zip(*pair, strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_evaluations_made_differently_are_pointed_out(
    inputs: dict[str, ArtifactRef], tmp_path: Path
) -> None:
    path = inputs["evaluation:base"].path / "evaluation.json"
    path.write_text(path.read_text().replace("0.4.13", "0.4.12"))
    report().build(inputs, tmp_path / "work", RunContext(run_dir=tmp_path))
    text = (tmp_path / "work" / "out" / "report.md").read_text()
    assert "> **Note.** The evaluations differ in lm_eval: base: 0.4.12" in text


def test_where_a_local_model_lies_is_no_part_of_the_recipe() -> None:
    here, there = report(experiment("/here")), report(experiment("/there"))
    assert plain(here.recipe()) == plain(there.recipe())


def test_every_field_of_the_recipe_is_part_of_it() -> None:
    recipe = report().recipe()
    known = plain(recipe)
    assert isinstance(known, dict)
    assert set(known) == set(ReportRecipe.model_fields)


def test_inputs_name_every_stage_by_role() -> None:
    assert set(report().inputs()) == {
        *(f"evaluation:{name}" for name in VARIANTS),
        "training:base_cpt",
        "training:instruct_cpt",
        "geometry",
    }
