from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_residual.core.build import build_node
from cpt_residual.core.gc import collect, delete
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import RunContext
from cpt_residual.core.store import Store
from cpt_residual.errors import ArtifactError, WorkerError
from support.stages import LinkStage, TextStage


def _record(runs: Path, name: str, graph: Graph, key: str = "rows") -> None:
    nodes = [{"stage": n.stage.name, "fingerprint": n.fingerprint, "more": 1} for n in graph.nodes]
    (runs / name).mkdir(parents=True)
    (runs / name / "plan.json").write_text(json.dumps({key: nodes, "experiment": "x"}))


def _interrupt(work: Path) -> None:
    raise WorkerError("interrupted")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_an_empty_store_has_no_garbage(store: Store, runs: Path) -> None:
    assert collect(store, runs) == []


def test_lists_then_deletes_only_what_no_run_refers_to(
    store: Store, runs: Path, ctx: RunContext
) -> None:
    kept, dropped = Graph.of([TextStage("kept", "k")]), Graph.of([TextStage("dropped", "d")])
    half = Graph.of([TextStage("half", "h", action=_interrupt)])
    for graph in (kept, dropped):
        build_node(store, graph, graph.nodes[0], ctx)
    with pytest.raises(WorkerError):
        build_node(store, half, "half", ctx)
    _record(runs, "one", kept)
    _record(runs, "two", kept, key="nodes")
    (runs / "without a plan").mkdir()
    items = collect(store, runs)
    assert [(item.path, item.reason) for item in items] == [
        (store.path_of(dropped["dropped"]), "no recorded run refers to it"),
        (store.work_of(half["half"]), "scratch of a stage that no recorded run refers to"),
    ]
    assert all(item.bytes > 0 for item in items)
    assert store.status(dropped, "dropped").state == "ready"  # listing deletes nothing
    assert delete(store, items) == items
    assert store.status(dropped, "dropped").state == "missing"
    assert not store.work_of(half["half"]).exists()
    assert store.status(kept, "kept", deep=True).state == "ready"
    assert collect(store, runs) == []
    assert list((store.root / ".trash").iterdir()) == []


def test_checkpoints_of_a_recorded_run_stay_until_its_artifact_is_published(
    store: Store, runs: Path, ctx: RunContext
) -> None:
    half = Graph.of([TextStage("half", "h", action=_interrupt)])
    _record(runs, "one", half)
    with pytest.raises(WorkerError):
        build_node(store, half, "half", ctx)
    assert collect(store, runs) == []
    whole = Graph.of([TextStage("half", "h")])
    build_node(store, whole, "half", ctx)
    store.work_of(whole["half"]).mkdir(parents=True)  # as a kill right after publishing leaves it
    (item,) = collect(store, runs)
    assert item.reason == "scratch of an artifact that is published"


def test_what_is_being_built_is_left_alone(store: Store, runs: Path, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("a")])
    build_node(store, graph, "a", ctx)
    items = collect(store, runs)
    assert len(items) == 1
    with store.lock(graph["a"]):
        assert collect(store, runs) == []
        assert delete(store, items) == []  # locked since it was listed
    assert store.status(graph, "a", deep=True).state == "ready"


def test_remains_of_a_killed_deletion_are_garbage(store: Store, runs: Path) -> None:
    trash = store.root / ".trash"
    (trash / "old").mkdir(parents=True)
    (trash / "old" / "weights").write_bytes(b"1234")
    (trash / "file").write_bytes(b"12")
    items = collect(store, runs)
    assert [(item.path.name, item.bytes) for item in items] == [("file", 2), ("old", 4)]
    delete(store, items)
    assert list(trash.iterdir()) == []
    delete(store, items)  # somebody else was faster


def test_links_are_deleted_and_what_they_point_to_is_not(
    store: Store, runs: Path, ctx: RunContext, tmp_path: Path
) -> None:
    outside = tmp_path / "model"
    outside.write_bytes(b"w" * 100_000)
    stage = LinkStage("base", lambda work: (work / "out" / "model").symlink_to(outside))
    graph = Graph.of([stage])
    build_node(store, graph, "base", ctx)
    (item,) = collect(store, runs)
    assert item.bytes < 50_000
    delete(store, [item])
    assert outside.stat().st_size == 100_000
    assert store.status(graph, "base").state == "missing"


def test_without_a_folder_of_runs_nothing_is_garbage(
    store: Store, tmp_path: Path, ctx: RunContext
) -> None:
    assert collect(store, tmp_path / "nowhere") == []
    graph = Graph.of([TextStage("a")])
    build_node(store, graph, "a", ctx)
    with pytest.raises(ArtifactError, match="everything in the store would be garbage") as caught:
        collect(store, tmp_path / "nowhere")
    assert caught.value.problems == (f"1 artifact(s) and scratch folder(s) in {store.root}",)
    assert "Nothing was deleted" in caught.value.remedy
    (tmp_path / "nowhere").mkdir()
    assert len(collect(store, tmp_path / "nowhere")) == 1, "said on purpose"


def test_a_plan_that_cannot_be_read_stops_everything(
    store: Store, runs: Path, ctx: RunContext
) -> None:
    graph = Graph.of([TextStage("a")])
    build_node(store, graph, "a", ctx)
    (runs / "bad").mkdir(parents=True)
    (runs / "bad" / "plan.json").write_text('{"nodes": [{"stage": "text"}]}')
    with pytest.raises(ArtifactError, match="fingerprint") as caught:
        collect(store, runs)
    path = runs / "bad" / "plan.json"
    assert caught.value.problems == (f"{path}: nodes.0.fingerprint: Field required",)
