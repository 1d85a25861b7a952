"""What an evaluation is expected to ask: enough for a plan, for every shipped experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.config.suite_tasks import AskedOf, HarnessTask, Workload
from cpt_residual.core.store import Store
from cpt_residual.stages.registry import build_graph
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.heldout import HeldoutSuite


def harness(**task: object) -> HarnessSuite:
    return HarnessSuite(kind="harness", tasks=[HarnessTask.model_validate(task)])


def test_stock_tasks_have_their_public_sizes() -> None:
    (ifeval,) = harness(task="ifeval").workload(AskedOf())
    assert ifeval.requests == 541
    assert ifeval.generated_batches(64) == 9 * ifeval.new_tokens
    (mmlu,) = harness(task="mmlu", num_fewshot=5).workload(AskedOf())
    assert (mmlu.requests, mmlu.new_tokens) == (14042, 0)
    (limited,) = harness(task="arc_easy", limit=10).workload(AskedOf())
    assert limited.requests == 40
    (unknown,) = harness(task="somebody_else").workload(AskedOf())
    assert unknown.tokens > 0


def test_documents_of_the_world_are_short() -> None:
    suite = HeldoutSuite(kind="heldout", corpora=["web", "world"], max_documents=10)
    web, world = suite.workload(AskedOf(generated=frozenset({"world"})))
    assert web == Workload(10, 700)
    assert world.tokens < web.tokens


@pytest.mark.parametrize("name", experiment_names())
def test_every_evaluation_of_every_experiment_has_an_estimate(name: str, tmp_path: Path) -> None:
    graph = build_graph(compose([f"+experiment={name}"]), Store(tmp_path))
    costs = [node.stage.cost() for node in graph.nodes if node.stage.name == "evaluate"]
    assert costs
    assert all(cost.flops > 0 and 0.1 < cost.seconds < 24 * 3600 for cost in costs)
