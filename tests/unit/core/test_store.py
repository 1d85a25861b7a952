from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.core.artifact import Manifest, Receipt
from cpt_residual.core.build import build_node
from cpt_residual.core.graph import Graph
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import Node, RunContext
from cpt_residual.core.store import NodeStatus, Store
from cpt_residual.errors import ArtifactError, CorruptArtifactError, StaleArtifactError
from support.kills import touch_later
from support.stages import ActionStage, TextStage


@pytest.fixture
def graph() -> Graph:
    return Graph.of([TextStage("b", "two", (("source", TextStage("a", "one")),))])


@pytest.fixture
def built(store: Store, graph: Graph, ctx: RunContext) -> Store:
    for node in graph.nodes:
        build_node(store, graph, node, ctx)
    return store


def _edit(path: Path, *, keep_time: bool) -> tuple[str, str]:
    """Change one byte and keep the size; returns the hashes before and after."""
    before, stat = file_sha256(path), path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        touch_later(path)
    return before, file_sha256(path)


def test_looking_at_an_empty_store_writes_nothing(store: Store, graph: Graph) -> None:
    status = store.status(graph, "a")
    assert (status.state, status.reason) == ("missing", "not built yet")
    assert not store.root.exists()
    with pytest.raises(ArtifactError, match="is missing") as caught:
        store.open(graph, "a")
    assert str(store.path_of(graph["a"])) in str(caught.value)
    with pytest.raises(ArtifactError, match="is missing"):
        store.reference(graph["a"])
    assert not store.root.exists()


def test_a_published_artifact_is_ready_and_says_what_it_is(built: Store, graph: Graph) -> None:
    node = graph["b"]
    assert built.status(graph, "b").state == "ready"
    assert "2 files as recorded" in built.status(graph, node, deep=True).reason
    ref = built.open(graph, "b")
    assert ref.path == built.root / "text" / node.fingerprint[:16]
    assert (ref.path / "data.txt").read_text() == "two|source=one|"
    assert ref.metrics == {"length": 3, "loss": 0.5, "name": "two", "done": True}
    manifest = built.manifest(node)
    assert manifest is not None
    assert manifest.recipe == {"text": "two"}
    assert manifest.inputs["source"].content_hash == built.open(graph, "a").content_hash
    assert set(manifest.files) == {"data.txt", "sub/more.txt"}
    assert manifest.content_hash == ref.content_hash
    receipt = built.receipt(node)
    assert receipt is not None
    assert receipt.pid == os.getpid()
    assert receipt.cores >= 1
    assert receipt.peak_rss_bytes > 1_000_000
    assert "pydantic" in receipt.libraries


def test_the_manifest_is_the_same_wherever_it_is_built(
    graph: Graph, ctx: RunContext, tmp_path: Path
) -> None:
    texts: set[bytes] = set()
    for name in ("x", "y"):
        store = Store(tmp_path / name)
        build_node(store, graph, "a", ctx)
        texts.add((store.path_of(graph["a"]) / "manifest.json").read_bytes())
    assert len(texts) == 1


def test_an_edited_file_is_corrupt_and_both_hashes_are_named(built: Store, graph: Graph) -> None:
    before, after = _edit(built.path_of(graph["a"]) / "data.txt", keep_time=False)
    status = built.status(graph, "a")
    assert status.state == "corrupt"
    assert status.problems[0].startswith("data.txt: ")
    assert before in status.reason
    assert after in status.reason
    with pytest.raises(CorruptArtifactError) as caught:
        built.open(graph, "a")
    message = str(caught.value)
    assert before in message
    assert after in message
    assert f"rm -r {built.path_of(graph['a'])}" in message


def test_an_edit_with_size_and_time_set_back_is_seen_by_the_deep_check(
    built: Store, graph: Graph
) -> None:
    before, after = _edit(built.path_of(graph["a"]) / "data.txt", keep_time=True)
    assert built.status(graph, "a").state == "ready"  # the quick check trusts size and time
    status = built.status(graph, "a", deep=True)
    assert status.state == "corrupt"
    assert before in status.reason
    assert after in status.reason
    with pytest.raises(CorruptArtifactError):
        Store(built.root).open(graph, "a")  # a new process reads everything before use


def test_all_kinds_of_damage_are_listed_at_once(built: Store, graph: Graph) -> None:
    path = built.path_of(graph["a"])
    (path / "data.txt").unlink()
    (path / "sub" / "more.txt").write_text("longer than it was before")
    (path / "tokenizer.json").write_text("{}")
    (path / "nowhere").symlink_to(path / "absent")
    status = built.status(graph, "a")
    assert status.state == "corrupt"
    assert [problem.split(":")[0] for problem in status.problems] == [
        "nowhere",
        "data.txt",
        "sub/more.txt",
        "tokenizer.json",
    ]
    assert "(and 3 more)" in status.reason
    assert "25 bytes, recorded 9" in status.problems[2]


EDITS: list[tuple[Callable[[str], str], str]] = [
    (lambda text: "{", "Invalid JSON"),
    (lambda text: "\udcff", "manifest.json cannot be trusted"),
    (lambda text: text.replace('"loss": 0.5', '"loss": 0.4'), "sealed as"),
    (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "schema_version"),
]


@pytest.mark.parametrize(("edit", "said"), EDITS)
def test_a_manifest_that_was_edited_is_corrupt(
    built: Store, graph: Graph, edit: Callable[[str], str], said: str
) -> None:
    manifest = built.path_of(graph["a"]) / "manifest.json"
    changed = edit(manifest.read_text())
    manifest.write_bytes(changed.encode("utf-8", "surrogateescape"))
    status = built.status(graph, "a")
    assert status.state == "corrupt"
    assert said in status.reason
    assert not any(word in status.reason for word in ("pydantic", "validation error", "input_"))
    assert built.manifest(graph["a"]) is None
    with pytest.raises(CorruptArtifactError):
        built.open(graph, "a")


def test_an_artifact_in_the_place_of_another_is_corrupt(built: Store, graph: Graph) -> None:
    shutil.rmtree(built.path_of(graph["b"]))
    shutil.copytree(built.path_of(graph["a"]), built.path_of(graph["b"]))
    status = built.status(graph, "b")
    assert status.state == "corrupt"
    assert graph["a"].fingerprint in status.reason
    assert graph["b"].fingerprint in status.reason


def test_a_directory_without_manifest_was_never_published(
    built: Store, graph: Graph, ctx: RunContext
) -> None:
    path = built.path_of(graph["a"])
    (path / "manifest.json").unlink()
    (path / "data.txt").write_text("half")
    status = built.status(graph, "a")
    assert status.state == "missing"
    assert "has no manifest" in status.reason
    build_node(built, graph, "a", ctx)
    assert built.status(graph, "a", deep=True).state == "ready"
    assert (path / "data.txt").read_text() == "one|"


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_without_receipt_everything_is_read(built: Store, graph: Graph, text: str | None) -> None:
    path = built.path_of(graph["a"])
    (path / "receipt.json").unlink()
    if text is not None:
        (path / "receipt.json").write_text(text)
    assert built.receipt(graph["a"]) is None
    assert built.status(graph, "a").state == "ready"
    _edit(path / "data.txt", keep_time=True)
    assert built.status(graph, "a").state == "corrupt"


def test_a_store_that_cannot_be_written_can_be_checked(
    built: Store, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch_later(built.path_of(graph["a"]) / "data.txt")

    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("cpt_residual.core.store.write_json_atomic", refuse)
    assert built.status(graph, "a").state == "ready"


def test_stale_names_both_contents(store: Store, ctx: RunContext) -> None:
    text = ["first"]
    source = ActionStage("a", lambda work: _write(work, text[0]))
    graph = Graph.of([TextStage("b", "two", (("source", source),))])
    before = build_node(store, graph, "a", ctx).ref.content_hash
    build_node(store, graph, "b", ctx)
    shutil.rmtree(store.path_of(graph["a"]))
    assert store.status(graph, "b").state == "ready"  # the input's own status says missing
    text[0] = "second"  # the same recipe gives other bytes
    after = build_node(store, graph, "a", ctx).ref.content_hash
    status = store.status(graph, "b")
    assert status.state == "stale"
    assert status.problems == (
        f"source (a): content {after} now, {before} when b was built from it",
    )
    with pytest.raises(StaleArtifactError) as caught:
        store.open(graph, "b")
    assert before in str(caught.value)
    assert after in str(caught.value)
    with pytest.raises(StaleArtifactError, match=r"Delete it \(rm -r "):
        build_node(store, graph, "b", ctx)
    shutil.rmtree(store.path_of(graph["b"]))
    ref = build_node(store, graph, "b", ctx).ref
    assert (ref.path / "data.txt").read_text() == "two|source=second"


def _write(work: Path, text: str) -> None:
    (work / "out" / "data.txt").write_text(text)


def test_records_are_absent_where_there_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert Manifest.read(tmp_path / "nothing") is None
    assert Manifest.read(tmp_path / "file") is None
    assert Receipt.read(tmp_path / "file") is None


def test_all_artifacts_that_cannot_be_used_are_named_at_once(built: Store, graph: Graph) -> None:
    def found() -> list[tuple[Node, NodeStatus]]:
        return [(node, built.status(graph, node)) for node in graph.nodes]

    built.require_usable(found())
    a, b = (built.path_of(graph[name]) for name in "ab")
    (a / "extra.txt").write_text("x")
    with pytest.raises(CorruptArtifactError, match=r"artifact a \(\w+\) is corrupt"):
        built.require_usable(found())
    (b / "manifest.json").write_text("{")
    (a / "more.txt").write_text("x")
    with pytest.raises(CorruptArtifactError, match="2 artifacts cannot be used") as caught:
        built.require_usable(found())
    first, second = caught.value.problems
    assert first.startswith("a (")
    assert "is corrupt: extra.txt: not in the manifest" in first
    assert first.endswith("(and 1 more)")
    assert "is corrupt: manifest.json cannot be trusted" in second
    assert caught.value.remedy.endswith(f":\n  rm -r {a}\n  rm -r {b}")


_MEBIBYTES = 8


def _bytes_read_by(action: Callable[[], object]) -> int:
    """What this process reads from files meanwhile, as the kernel counts it."""

    def read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])

    before = read()
    action()
    return (read() - before) >> 20


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")
def test_the_processes_of_a_run_hash_an_artifact_once(tmp_path: Path) -> None:
    """A Store stands for a process. Five read the artifact that one has built."""

    def write(work: Path) -> None:
        (work / "out" / "weights.bin").write_bytes(bytes(_MEBIBYTES << 20))

    graph, root, one = Graph.of([ActionStage("big", action=write)]), tmp_path / "store", tmp_path
    build_node(Store(root, run=one / "one"), graph, "big", RunContext(run_dir=one / "one"))

    def read_in(run: str) -> int:
        return _bytes_read_by(lambda: Store(root, run=one / run).open(graph, "big"))

    assert read_in("one") == 0, "its builder has hashed it"
    time.sleep(2.1)  # of a younger file no hash is kept
    assert [read_in(run) for run in ("two", "two", "three")] == [_MEBIBYTES, 0, _MEBIBYTES]
    weights = root / "action" / graph["big"].fingerprint[:16] / "weights.bin"
    stat = weights.stat()
    content = bytearray(weights.read_bytes())
    content[5] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time are as before
    with pytest.raises(CorruptArtifactError, match="big"):
        Store(root, run=one / "one").open(graph, "big")
