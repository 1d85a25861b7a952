"""The fingerprint of every stage of every experiment: a refactoring must not move one.

A deliberate change: `UPDATE_GOLDEN=1 python -m pytest tests/golden/test_fingerprints.py`, and say
in the changelog what will be built again. Evaluations and reports are left out: they follow the
code of the scorer and the version of lm-eval by design.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.core.stage import Resources
from cpt_residual.core.store import Store
from cpt_residual.stages.registry import build_graph

GOLDEN = Path(__file__).parent / "fingerprints"


@pytest.mark.parametrize("name", experiment_names())
def test_fingerprints_have_not_moved(name: str, tmp_path: Path) -> None:
    graph = build_graph(compose([f"+experiment={name}"]), Store(tmp_path))
    found = {
        node.stage.node: node.fingerprint[:16]
        for node in graph.nodes
        if node.stage.name not in ("evaluate", "report")
    }
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(path.read_text()), "see the head of this file"


@pytest.mark.parametrize(
    "execution",
    [
        "launch.num_processes=2",
        "launch.num_nodes=2",
        "launch.device=cuda",
        "launch.threads=2",
        "launch.micro_batch_rows=4",
        "launch.checkpoint_every_steps=7",
        "deepspeed=zero2",
        "tracking=off",
        "paths.root=elsewhere",
    ],
)
def test_how_it_is_run_moves_no_fingerprint(execution: str, tmp_path: Path) -> None:
    plain, changed = (
        build_graph(compose(["+experiment=tiny", *more]), Store(tmp_path))
        for more in ([], [execution])
    )
    assert plain.fingerprint == changed.fingerprint


def test_resources_follow_launch_and_stay_out_of_fingerprints(tmp_path: Path) -> None:
    """Drawn at random: what stages ask for moves with `launch`, what they are does not."""
    draw = random.Random(0)
    asked: set[tuple[Resources, ...]] = set()
    fingerprints: set[str] = set()
    for _ in range(6):
        launch = {
            "device": draw.choice(["cpu", "cuda"]),
            "num_nodes": draw.choice([1, 2]),
            "num_processes": draw.choice([1, 2, 4]),
            "threads": draw.randint(1, 9),
        }
        overrides = [f"launch.{name}={value}" for name, value in launch.items()]
        graph = build_graph(compose(["+experiment=smoke", *overrides]), Store(tmp_path))
        fingerprints.add(graph.fingerprint)
        asked.add(tuple(node.stage.resources() for node in graph.nodes))
        cpt, evaluation = (
            graph[name].stage.resources() for name in ("cpt:base_cpt", "evaluate:base")
        )
        on_gpu = launch["device"] == "cuda"
        assert (cpt.nodes, cpt.gpus_per_node) == (
            launch["num_nodes"],
            launch["num_processes"] if on_gpu else 0,
        )
        assert (evaluation.nodes, evaluation.gpus_per_node) == (1, int(on_gpu))
    assert len(fingerprints) == 1
    assert len(asked) > 1
