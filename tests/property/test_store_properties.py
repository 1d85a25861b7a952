"""What must hold for every recipe, every file and every instant."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from cpt_residual.core.build import build_node
from cpt_residual.core.gc import collect, delete
from cpt_residual.core.graph import Graph
from cpt_residual.core.hashing import canonical_json, file_sha256, fingerprint
from cpt_residual.core.stage import RunContext
from cpt_residual.core.store import Store
from support.kills import killed_at
from support.stages import ActionStage, TextStage, tree_bytes


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Frozen):
    corpus: str
    share: float
    repeat: bool


class Optimizer(Frozen):
    learning_rate: float
    warmup_steps: int | None


class Recipe(Frozen):
    seed: int
    name: str
    optimizer: Optimizer
    sources: tuple[Source, ...]
    limits: dict[str, float]
    fallback: Source | None


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SOURCES = st.builds(Source, corpus=st.text(max_size=3), share=NUMBERS, repeat=st.booleans())
RECIPES = st.builds(
    Recipe,
    seed=st.integers(),
    name=st.text(max_size=3),
    optimizer=st.builds(
        Optimizer, learning_rate=NUMBERS, warmup_steps=st.none() | st.integers(0, 3)
    ),
    sources=st.lists(SOURCES, max_size=2).map(tuple),
    limits=st.dictionaries(st.text(max_size=2), NUMBERS, max_size=3),
    fallback=st.none() | SOURCES,
)


def _fingerprint(recipe: BaseModel) -> str:
    return fingerprint("stage", 1, recipe, {})


@given(RECIPES, RECIPES)
def test_fingerprints_agree_exactly_when_recipes_do(one: Recipe, two: Recipe) -> None:
    assert (_fingerprint(one) == _fingerprint(two)) == (one == two)


@given(RECIPES, RECIPES)
def test_the_fingerprint_moves_for_every_field(recipe: Recipe, other: Recipe) -> None:
    for name in Recipe.model_fields:
        changed = recipe.model_copy(update={name: getattr(other, name)})
        same = getattr(recipe, name) == getattr(other, name)
        assert (_fingerprint(changed) == _fingerprint(recipe)) == same
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": 0.125})
    changed = recipe.model_copy(update={"optimizer": optimizer})
    same = recipe.optimizer.learning_rate == 0.125
    assert (_fingerprint(changed) == _fingerprint(recipe)) == same


@given(RECIPES)
def test_the_fingerprint_does_not_move_for_order_or_a_trip_through_json(recipe: Recipe) -> None:
    reordered = recipe.model_copy(update={"limits": dict(reversed(recipe.limits.items()))})
    assert _fingerprint(reordered) == _fingerprint(recipe)
    reread = Recipe.model_validate_json(canonical_json(recipe))
    assert _fingerprint(reread) == _fingerprint(recipe)


@contextmanager
def _fresh_store() -> Generator[tuple[Store, RunContext]]:
    with tempfile.TemporaryDirectory() as folder:
        yield Store(Path(folder) / "store"), RunContext(run_dir=Path(folder))


FILE_NAMES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(FILE_NAMES, st.binary(min_size=1, max_size=40), min_size=1, max_size=4)


def _is_a_tree(files: dict[str, bytes]) -> bool:
    return not any(other.startswith(name + "/") for name in files for other in files)


def _writer(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(work: Path) -> None:
        for name, data in files.items():
            path = work / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    return write


@pytest.mark.usefixtures("without_fsync")
@settings(max_examples=30, deadline=None)
@given(TREES.filter(_is_a_tree), st.data())
def test_any_files_are_published_as_they_are_and_any_edit_is_found(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    with _fresh_store() as (store, ctx):
        graph = Graph.of([ActionStage("a", _writer(files))])
        ref = build_node(store, graph, "a", ctx).ref
        assert tree_bytes(ref.path) == files
        assert store.status(graph, "a", deep=True).state == "ready"
        name = data.draw(st.sampled_from(sorted(files)))
        path, stat = ref.path / name, (ref.path / name).stat()
        before = file_sha256(path)
        edited = bytearray(files[name])
        edited[data.draw(st.integers(0, len(edited) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(edited))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        status = store.status(graph, "a", deep=True)
        assert status.state == "corrupt"
        assert name in status.reason
        assert before in status.reason
        assert file_sha256(path) in status.reason


@pytest.fixture
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill of a process loses nothing that it wrote; only a power cut would."""

    def fsync(handle: int) -> None:
        del handle

    monkeypatch.setattr(os, "fsync", fsync)


def _chain() -> Graph:
    return Graph.of([TextStage("b", "two", (("source", TextStage("a", "one")),))])


def _build_all(root: Path) -> dict[str, dict[str, bytes]]:
    """Build what is missing; the published bytes of every node."""
    store, graph = Store(root / "store"), _chain()
    ctx = RunContext(run_dir=root)
    return {
        node.stage.node: tree_bytes(build_node(store, graph, node, ctx).ref.path)
        for node in graph.nodes
    }


def _check_after_kill(root: Path, expected: dict[str, dict[str, bytes]]) -> None:
    store, graph = Store(root / "store"), _chain()
    for node in graph.nodes:
        quick = store.status(graph, node).state
        assert quick == store.status(graph, node, deep=True).state
        assert quick in ("ready", "missing")
        if quick == "ready":
            assert tree_bytes(store.path_of(node)) == expected[node.stage.node]


@pytest.mark.usefixtures("without_fsync")
def test_kill_at_every_instant_of_a_build(tmp_path: Path) -> None:
    reference, root = tmp_path / "reference", tmp_path / "killed"
    expected = _build_all(reference)
    shutil.rmtree(Store(reference / "store").path_of(_chain()["b"]))
    build = functools.partial(_build_all, root)
    instant, killed = 0, True
    while killed:
        shutil.copytree(reference, root)
        killed = killed_at(instant, build)
        _check_after_kill(root, expected)
        if instant % 4 == 0:  # another kill during the repair
            killed_at(instant // 2, build)
            _check_after_kill(root, expected)
        assert _build_all(root) == expected
        shutil.rmtree(root)
        instant += 1
    assert instant > 60


@pytest.mark.usefixtures("without_fsync")
def test_kill_at_every_instant_of_a_deletion(tmp_path: Path) -> None:
    reference, root = tmp_path / "reference", tmp_path / "killed"
    expected = _build_all(reference)
    (reference / "runs").mkdir()
    instant, killed = 0, True
    while killed:
        shutil.copytree(reference, root)
        store = Store(root / "store")
        items = collect(store, root / "runs")
        assert len(items) == 2
        killed = killed_at(instant, functools.partial(delete, store, items))
        _check_after_kill(root, expected)
        delete(store, collect(store, root / "runs"))
        assert collect(store, root / "runs") == []
        assert _build_all(root) == expected
        shutil.rmtree(root)
        instant += 1
    assert instant > 10
