"""The evaluation stage: recipe, inputs, published files, many variants in one process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.config.schema import Launch
from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.core.stage import ArtifactRef, RunContext, Stage
from cpt_residual.data.world.size import WorldSize
from cpt_residual.data.world.write import write_world
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.results import read_results
from cpt_residual.stages.evaluate import Evaluate
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.heldout import HeldoutSuite
from cpt_residual.suites.world import WorldSuite
from support.bigram_models import write_bigram, write_random
from support.stages import TextStage

WORLD = TextStage("world")
CORPUS = CorpusInput(WORLD, "general.jsonl", "general_heldout.jsonl")
SUITES = {
    "world": WorldSuite(
        kind="world", probes=["instruction_following", "new_facts"], max_new_tokens=4
    ),
    "heldout": HeldoutSuite(kind="heldout", corpora=["general"], max_documents=3),
}


def stage(variant: str = "a", **changes: object) -> Evaluate:
    made = Evaluate(
        variant=variant,
        model=TextStage("model"),
        template=TextStage("instruct"),
        base=TextStage("base"),
        suites=SUITES,
        corpora={"general": CORPUS},
        world=WORLD,
        seed=0,
        launch=Launch(),
    )
    return dataclasses.replace(made, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("artifacts")
    size = WorldSize(
        num_general_documents=30,
        num_new_documents=30,
        num_instructions=30,
        num_heldout_documents=5,
        num_donor_documents=10,
        num_donor_instructions=30,
        num_prompts_per_type=1,
    )
    (root / "world").mkdir()
    write_world(root / "world", seed=0, size=size)
    return {
        "world": root / "world",
        "instruct": write_bigram(
            root / "instruct", {"<|assistant|>": "A", "A": "<|end|>"}, otherwise="A"
        ),
        "other": write_random(root / "other", seed=5, positions=256),
    }


def build(
    made: Evaluate, model: str, artifacts: Mapping[str, Path], work: Path
) -> dict[str, object]:
    paths = {
        "model": artifacts[model],
        "template": artifacts["instruct"],
        "base": artifacts["other"],
    }
    refs = {
        role: ArtifactRef(given.name, given.node, "f", "c", paths.get(role, artifacts["world"]), {})
        for role, given in made.inputs().items()
    }
    work.mkdir(parents=True)
    return dict(made.build(refs, work, RunContext(run_dir=work)))


def test_variants_are_scored_one_after_the_other_in_one_process(
    artifacts: Mapping[str, Path], tmp_path: Path
) -> None:
    first = build(stage("instruct"), "instruct", artifacts, tmp_path / "1")
    other = build(stage("other"), "other", artifacts, tmp_path / "2")
    again = build(stage("instruct"), "instruct", artifacts, tmp_path / "3")
    assert first == again != other
    assert first["instruction_following/closed_share"] == 1
    for file in ("results.json", "samples.jsonl", "evaluation.json"):
        published = (tmp_path / "1" / "out" / file).read_bytes()
        assert published == (tmp_path / "3" / "out" / file).read_bytes()
        assert b"/tmp" not in published
    assert {row.variant for row in read_results(tmp_path / "2" / "out")} == {"other"}
    assert sorted(p.name for p in (tmp_path / "1" / "out").iterdir()) == [
        "evaluation.json",
        "results.json",
        "samples.jsonl",
    ]
    rows = json.loads((tmp_path / "1" / "out" / "results.json").read_text())
    assert {f"{row['task']}/{row['metric']}": row["value"] for row in rows} == first


def test_the_inputs_are_what_the_suites_need() -> None:
    needed: Mapping[str, Stage] = stage().inputs()
    assert set(needed) == {"model", "template", "base", "world", "heldout:general"}
    stock = HarnessSuite(kind="harness", tasks=[HarnessTask(task="ifeval")])
    assert set(stage(suites={"ifeval": stock}).inputs()) == {"model", "template", "base"}
    assert stage().node == "evaluate:a"


def test_the_recipe_holds_the_question_and_the_scorer_but_not_the_launch() -> None:
    same = stage(launch=Launch(eval_batch_size=1, device="cpu", threads=2))
    assert same.recipe() == stage().recipe()
    assert len(stage().recipe().scorer_sha256) == 64
    fewer = {"heldout": SUITES["heldout"].model_copy(update={"max_documents": 2})}
    for change in ({"suites": fewer}, {"variant": "b"}, {"seed": 1}, {"precision": "bf16"}):
        assert stage(**change).recipe() != stage().recipe()
    moved = {"general": CorpusInput(WORLD, "general.jsonl", "new_domain_heldout.jsonl")}
    assert stage(corpora=moved).recipe() != stage().recipe()


def test_suites_without_what_they_ask_for_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="probes of the world, but there is no world"):
        stage(world=None).inputs()
    with pytest.raises(ConfigError, match=r"held-out text[\s\S]*corpus general"):
        stage(corpora={"general": CorpusInput(WORLD, "general.jsonl")}).recipe()


def test_planning_imports_no_heavy_library() -> None:
    code = """
import sys
import cpt_residual.stages.evaluate
from cpt_residual.evaluation.scorer import harness_version, own_scorer_sha256
own_scorer_sha256([]), harness_version()
heavy = {"torch", "lm_eval", "transformers", "datasets", "numpy"}
sys.exit(sorted(heavy & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
