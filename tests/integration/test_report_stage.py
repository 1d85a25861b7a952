"""The report stage on published evaluations, trainings and geometry, without training anything."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

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
    WorldSuite,
)
from cpt_residual.core.hashing import plain
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, RunContext, Stage
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.results import EvaluationResult, Sample, write_evaluation
from cpt_residual.stages.report import Report, ReportRecipe
from cpt_residual.weights.geometry import GeometryRow
from support.report_scenarios import SUCCESS, facts

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
    found: dict[str, ArtifactRef] = {}
    for name in VARIANTS:
        folder = tmp_path / f"evaluate-{name}"
        rows = tuple(row for row in made.rows if row.variant == name)
        samples = tuple(
            Sample(
                task="instruction_following",
                doc_id=int(prompt),
                prompt_sha256=f"{int(prompt):064x}",
                metrics={
                    "prompt_level_strict_acc": values[name],
                    "prompt_level_strict_acc_open": values[name],
                    "inst_level_strict_acc": [values[name], 1.0],
                },
                stop_reason="<|end|>",
                num_tokens=5,
                response="x",
            )
            for prompt, values in made.prompts[0].values.items()
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
    assert metrics["outcome"] == "mostly_kept"
    document = json.loads((out / "results.json").read_text())
    assert document["new_corpus"] == "new_domain"
    assert {d["measure"] for d in document["differences"]} == {"strict", "open"}
    text = (out / "report.md").read_text()
    assert "* evaluation, lm_eval: 0.4.13" in text
    assert "evaluate:base_cpt_residual (" in text  # lineage
    assert "model instruct: org/x at aaaa" in text
    with (out / "prompts.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    variants = {row["variant"] for row in rows}
    assert variants == {"instruct", "instruct_cpt", "base_cpt_residual"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "comparison",
        "tradeoff",
        "per_type",
        "training",
        "geometry",
        "cost",
    }


def test_different_prompts_are_refused(inputs: dict[str, ArtifactRef], tmp_path: Path) -> None:
    samples = inputs["evaluation:instruct"].path / "samples.jsonl"
    samples.write_text(samples.read_text().replace(f"{5:064x}", "e" * 64))
    with pytest.raises(EvaluationError, match="not asked the same prompts"):
        report().build(inputs, tmp_path / "work", RunContext(run_dir=tmp_path))


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
