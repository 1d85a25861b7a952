from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.core import publish as publish_module
from cpt_residual.core.build import build_node
from cpt_residual.core.graph import Graph
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import Node, RunContext
from cpt_residual.core.store import Store
from cpt_residual.errors import ArtifactError, BusyError, DiskSpaceError, WorkerError
from support.kills import Helper
from support.stages import ActionStage, LinkStage, TextStage, tree_bytes


def _never(work: Path) -> None:
    raise AssertionError("built although it was ready")


def _out(work: Path, text: str = "x") -> None:
    (work / "out" / "data.txt").write_text(text)


def test_builds_once_and_says_why_it_skips(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("a")])
    first = build_node(store, graph, "a", ctx)
    assert not first.skipped
    assert first.reason == "not built yet"
    assert first.seconds > 0
    again = build_node(store, Graph.of([TextStage("a", action=_never)]), "a", ctx)
    assert again.skipped
    assert "same recipe and inputs, 2 files as recorded" in again.reason
    assert again.ref == first.ref
    assert not store.work_of(graph["a"]).exists()


def test_a_shared_fingerprint_is_built_once(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("one"), TextStage("two")])
    first = build_node(store, graph, "one", ctx)
    second = build_node(store, graph, "two", ctx)
    assert second.skipped
    assert second.ref.path == first.ref.path
    assert second.ref.node == "two"


def test_inputs_must_be_ready(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("b", sources=(("source", TextStage("a")),))])
    with pytest.raises(ArtifactError, match=r"artifact a .* is missing"):
        build_node(store, graph, "b", ctx)
    assert store.status(graph, "b").state == "missing"


def test_scratch_survives_a_failure_and_out_does_not(store: Store, ctx: RunContext) -> None:
    def fail(work: Path) -> None:
        raise WorkerError("the loss is not finite")

    graph = Graph.of([TextStage("a", action=fail)])
    with pytest.raises(WorkerError, match="not finite"):
        build_node(store, graph, "a", ctx)
    work = store.work_of(graph["a"])
    assert (work / "checkpoint").exists()
    (work / "checkpoint").write_text("resumed")
    (work / "out" / "left over").write_text("from the failure")
    graph = Graph.of([TextStage("a")])
    ref = build_node(store, graph, "a", ctx).ref
    assert tree_bytes(ref.path) == {"data.txt": b"resumed|", "sub/more.txt": b"hello" * 3}
    assert not work.exists()


def test_checkpoints_of_other_inputs_are_not_resumed(store: Store, ctx: RunContext) -> None:
    text = ["first"]
    fail = [True]

    def action(work: Path) -> None:
        if fail[0]:
            raise WorkerError("killed")

    source = ActionStage("a", lambda work: _out(work, text[0]))
    graph = Graph.of([TextStage("b", "two", (("source", source),), action)])
    build_node(store, graph, "a", ctx)
    with pytest.raises(WorkerError):
        build_node(store, graph, "b", ctx)
    (store.work_of(graph["b"]) / "checkpoint").write_text("trained on first")
    shutil.rmtree(store.path_of(graph["a"]))
    text[0], fail[0] = "second", False
    build_node(store, graph, "a", ctx)
    ref = build_node(store, graph, "b", ctx).ref
    assert (ref.path / "data.txt").read_text() == "two|source=second"


BAD_OUTPUT: list[tuple[Callable[[Path], object], str]] = [
    (lambda work: None, "it wrote no files"),
    (lambda work: (work / "out").rmdir(), "it wrote no files"),
    (lambda work: (work / "out" / "empty").mkdir(), "it wrote no files"),
    (lambda work: (work / "out" / "manifest.json").write_text(""), "manifest.json: a reserved"),
    (lambda work: (work / "out" / "link").symlink_to(__file__), "link: a link, but files"),
    (lambda work: (work / "out" / "folder").symlink_to("/"), "folder: neither file nor dir"),
    (lambda work: os.mkfifo(work / "out" / "pipe"), "pipe: neither file nor directory"),
]


@pytest.mark.parametrize(("action", "said"), BAD_OUTPUT)
def test_what_must_not_be_published(
    store: Store, ctx: RunContext, action: Callable[[Path], object], said: str
) -> None:
    graph = Graph.of([ActionStage("a", action)])
    with pytest.raises(WorkerError, match=said):
        build_node(store, graph, "a", ctx)
    assert store.status(graph, "a").state == "missing"


def test_numbers_that_are_not_finite_are_not_published(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([ActionStage("a", _out, metrics={"loss": float("nan"), "steps": 3})])
    with pytest.raises(WorkerError, match="loss = nan"):
        build_node(store, graph, "a", ctx)
    assert store.status(graph, "a").state == "missing"


def test_links_are_hashed_through_where_they_are_allowed(
    store: Store, ctx: RunContext, tmp_path: Path
) -> None:
    outside = tmp_path / "model.safetensors"
    outside.write_bytes(b"weights")
    stage = LinkStage("base", lambda work: (work / "out" / "model").symlink_to(outside))
    graph = Graph.of([stage])
    ref = build_node(store, graph, "base", ctx).ref
    assert (ref.path / "model").is_symlink()
    manifest = store.manifest(graph["base"])
    assert manifest is not None
    assert manifest.files["model"].sha256 == file_sha256(outside)
    assert manifest.files["model"].size == 7
    outside.write_bytes(b"WEIGHTS!")
    assert store.status(graph, "base").state == "corrupt"
    outside.unlink()
    assert store.status(graph, "base").state == "corrupt"


def test_a_file_that_changes_while_it_is_published_is_refused(
    store: Store, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def still_writing(path: Path) -> str:
        digest = file_sha256(path)
        path.write_text("more than before")
        return digest

    monkeypatch.setattr(publish_module, "file_sha256", still_writing)
    graph = Graph.of([ActionStage("a", _out)])
    with pytest.raises(WorkerError, match="changed while they were being published"):
        build_node(store, graph, "a", ctx)
    assert store.status(graph, "a").state == "missing"


class _StoreWithOwnScratch(Store):
    def __init__(self, root: Path, scratch: str) -> None:
        super().__init__(root)
        self._scratch = scratch

    def work_of(self, node: Node) -> Path:
        del node
        return self.root / ".work" / self._scratch


def _no_lock(store: Store, node: object) -> contextlib.AbstractContextManager[None]:
    del store, node
    return contextlib.nullcontext()


def test_a_directory_that_cannot_be_trusted_is_never_replaced(
    store: Store, ctx: RunContext
) -> None:
    def obstruct(work: Path) -> None:
        _out(work)
        final = store.path_of(graph["a"])
        final.mkdir(parents=True)
        (final / "manifest.json").write_text("{")

    graph = Graph.of([ActionStage("a", obstruct)])
    with pytest.raises(ArtifactError, match="its manifest cannot be read"):
        build_node(store, graph, "a", ctx)
    assert store.status(graph, "a").state == "corrupt"


def test_two_processes_publish_one_artifact(
    store: Store, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both build without a lock, meet right before publishing, and both end well."""
    monkeypatch.setattr(Store, "lock", _no_lock)
    gate_read, gate_write = os.pipe()
    graph = Graph.of([TextStage("a")])

    def child(name: str) -> Callable[[Callable[[], None]], object]:
        def work(ready: Callable[[], None]) -> None:
            mine = _StoreWithOwnScratch(store.root, name)

            def meet(work: Path) -> None:
                ready()
                os.read(gate_read, 1)

            theirs = Graph.of([TextStage("a", action=meet)])
            outcome = build_node(mine, theirs, "a", ctx)
            assert (outcome.ref.path / "data.txt").read_text() == "hello|"

        return work

    children = [Helper(child("left")), Helper(child("right"))]
    for each in children:
        each.wait_until_ready()
    os.write(gate_write, b"gg")
    assert [each.join() for each in children] == [0, 0]
    assert store.status(graph, "a", deep=True).state == "ready"
    assert list((store.root / ".work").iterdir()) == []


def test_busy_names_the_holder_and_ends_with_it(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("a")])

    def hold(ready: Callable[[], None]) -> None:
        with store.lock(graph["a"]):
            ready()
            time.sleep(60)

    other = Helper(hold)
    other.wait_until_ready()
    status = store.status(graph, "a")
    assert status.state == "busy"
    assert f"process {other.pid} on " in status.reason
    with pytest.raises(BusyError, match=f"built right now by process {other.pid} on .* since 20"):
        build_node(store, graph, "a", ctx)
    other.kill()  # SIGKILL: nobody tidies up
    assert store.status(graph, "a").state == "missing"
    assert not build_node(store, graph, "a", ctx).skipped


def test_a_ready_artifact_is_not_busy(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("a")])
    build_node(store, graph, "a", ctx)
    with store.lock(graph["a"]):
        assert store.status(graph, "a").state == "ready"
        assert build_node(store, graph, "a", ctx).skipped


def test_skips_what_another_process_finished_while_it_waited_for_the_lock(
    store: Store, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.of([TextStage("a", action=_never)])
    real = Store.lock

    def lock(self: Store, node: object) -> contextlib.AbstractContextManager[None]:
        monkeypatch.setattr(Store, "lock", real)
        build_node(self, Graph.of([TextStage("a")]), "a", ctx)
        return real(self, graph["a"])

    monkeypatch.setattr(Store, "lock", lock)
    assert build_node(store, graph, "a", ctx).skipped


def test_space_is_asked_for_before_the_work(store: Store, ctx: RunContext) -> None:
    graph = Graph.of([TextStage("a", action=_never, disk_bytes=1 << 60)])
    with pytest.raises(DiskSpaceError, match="not enough disk space") as caught:
        build_node(store, graph, "a", ctx)
    assert "needed: 1048576.0 TiB (1,152,921,504,606,846,976 bytes)" in str(caught.value)
    assert "found:  " in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("[enforce fail] write: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_during_the_build_is_named(
    store: Store, ctx: RunContext, error: Exception
) -> None:
    def fill(work: Path) -> None:
        raise error

    graph = Graph.of([TextStage("a", action=fill)])
    with pytest.raises(DiskSpaceError, match=r"needed: more than there is") as caught:
        build_node(store, graph, "a", ctx)
    assert caught.value.__cause__ is error
    assert str(error) in caught.value.problems[-1]
    assert store.status(graph, "a").state == "missing"


def test_a_disk_full_at_any_write_publishes_nothing(
    store: Store, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.of([TextStage("a")])
    for attempt in range(100):
        monkeypatch.setattr(os, "fsync", _Filling(attempt))
        try:
            outcome = build_node(store, graph, "a", ctx)
        except DiskSpaceError:
            state = store.status(graph, "a", deep=True).state
            assert state == "missing" or (state == "ready" and attempt > 0)
            continue
        break
    else:
        raise AssertionError("it never ended")
    assert attempt > 5
    assert (outcome.ref.path / "data.txt").read_text() == "hello|"
    assert not list((store.root / ".cache").glob("*")) if (store.root / ".cache").exists() else True


class _Filling:
    """fsync that finds the disk full at its n-th call."""

    def __init__(self, calls_left: int) -> None:
        self.calls_left = calls_left

    def __call__(self, handle: int) -> None:
        del handle
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
