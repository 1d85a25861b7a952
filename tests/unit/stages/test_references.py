"""The stage that publishes the questions of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.config.schema import Suite
from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.core.stage import ArtifactRef, RunContext
from cpt_residual.data.filters.references import read_references
from cpt_residual.errors import ConfigError
from cpt_residual.stages.references import References
from cpt_residual.stages.world import World
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.heldout import HeldoutSuite
from cpt_residual.suites.world import WorldSuite
from support.bigram_models import write_rows
from support.stages import SMALL_WORLD

STOCK = HarnessSuite(
    kind="harness", tasks=[HarnessTask(task="mmlu", num_fewshot=5), HarnessTask(task="ifeval")]
)
PROBES = WorldSuite(kind="world", probes=["old_facts", "new_facts"], max_new_tokens=4)
HELDOUT = HeldoutSuite(kind="heldout", corpora=["a"], max_documents=3)
SUITES: Mapping[str, Suite] = {"stock": STOCK, "probes": PROBES, "heldout": HELDOUT}
WORLD = World(world=SMALL_WORLD, seed=0)


def test_the_recipe_is_what_is_asked_and_nothing_else() -> None:
    recipe = References(SUITES, WORLD).recipe()
    assert recipe.tasks == ("ifeval", "mmlu")
    assert recipe.probes == ("new_facts", "old_facts")
    renamed = {"other": STOCK.model_copy(update={"tasks": STOCK.tasks[::-1]}), "probes": PROBES}
    assert References(renamed, WORLD).recipe() == recipe
    assert References({"probes": PROBES}, WORLD).recipe() != recipe


def test_the_world_is_an_input_only_where_its_probes_are_asked() -> None:
    assert References(SUITES, WORLD).inputs() == {"world": WORLD}
    assert References({"stock": STOCK}, WORLD).inputs() == {}
    with pytest.raises(ConfigError, match="there is no world"):
        References(SUITES, None).inputs()


def test_it_publishes_the_questions_and_counts_them(tmp_path: Path) -> None:
    for probe, prompts in {"old_facts": ["What is a?"], "new_facts": ["b?", "c?"]}.items():
        rows = [{"prompt": prompt, "answer": "x"} for prompt in prompts]
        write_rows(tmp_path / "world" / "probes" / f"{probe}.jsonl", rows)
    world = ArtifactRef("world", "world", "f", "c", tmp_path / "world", {})
    stage = References({"probes": PROBES}, WORLD)
    metrics = stage.build({"world": world}, tmp_path / "work", RunContext(run_dir=tmp_path))
    assert metrics == {"num_questions/new_facts": 2, "num_questions/old_facts": 1}
    found = read_references(tmp_path / "work" / "out" / "references.jsonl")
    assert [(each.task, each.text) for each in found] == [
        ("new_facts", "b?"),
        ("new_facts", "c?"),
        ("old_facts", "What is a?"),
    ]
