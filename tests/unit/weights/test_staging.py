"""Outputs appear whole or not at all, whoever else is at work."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_residual import api
from cpt_residual.errors import (
    ArtifactError,
    BusyError,
    CompatibilityError,
    DiskSpaceError,
    FinalCheckError,
)
from cpt_residual.weights.io.output_dir import OutputFolder, fresh_directory, require_free
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.source import PairDelta
from support.commands import environment
from support.pico_family import opened
from support.staged import NO_CHECK, contents, fail_after_a_half, hidden

# --- one at a time -------------------------------------------------------------------------------
HOLDER = """
import sys
from pathlib import Path
from cpt_residual.weights.io.output_dir import OutputFolder
with OutputFolder(Path(sys.argv[1]), stamp="a") as folder:
    (folder.path / "file").write_text("first")
    print("ready", flush=True)
    sys.stdin.read()
    folder.publish()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    """A process that is at work on `out`, and publishes it when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_another_process_is_named_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = holder(out)
    for stamp in ("a", "b", None):
        with (
            pytest.raises(BusyError, match=f"built right now by process {first.pid} on"),
            OutputFolder(out, stamp=stamp),
        ):
            raise AssertionError
    first.communicate("")
    assert first.returncode == 0
    assert contents(out) == {"file": b"first"}
    assert hidden(tmp_path) == []


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = holder(out)
    first.kill()
    first.communicate()
    assert hidden(tmp_path) == [".out.partial", ".out.partial.lock"]
    with fresh_directory(out) as folder:
        (folder / "file").write_text("second")
    assert contents(out) == {"file": b"second"}
    assert hidden(tmp_path) == []


# --- whose files they are ------------------------------------------------------------------------
def test_what_is_not_ours_is_not_removed(models: Path) -> None:
    precious = models / ".out.partial" / "precious"
    precious.parent.mkdir()
    precious.write_text("x")
    pair = PairDelta(opened(models / "base"), opened(models / "instruct"))
    with pytest.raises(ArtifactError, match="in the way"):
        merge(opened(models / "cpt"), pair, [Output(1.0, models / "out")])
    (precious.parent / "journal.json").write_text("{}")
    with pytest.raises(ArtifactError, match="in the way"):
        compute(opened(models / "base"), opened(models / "instruct"), models / "out")
    assert precious.read_text() == "x"


def test_a_link_is_not_ours(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "a", stamp="a") as folder:
        (folder.path / "precious").write_text("x")
        shutil.copytree(tmp_path / ".a.partial", tmp_path / "kept")
    (tmp_path / ".out.partial").symlink_to("kept")
    with pytest.raises(ArtifactError, match="in the way"), fresh_directory(tmp_path / "out"):
        raise AssertionError
    assert (tmp_path / "kept/out/precious").exists()


@pytest.mark.parametrize("journal", [None, ".journal.json.0123456789ab", "journal.json"])
def test_what_a_kill_has_left_is_cleared(tmp_path: Path, journal: str | None) -> None:
    """No journal yet, half a journal, and the journal of another version."""
    place = tmp_path / ".out.partial"
    place.mkdir()
    if journal:
        text = '{"format": "cpt_residual.staging", "of_tomorrow": 1}'
        (place / journal).write_text(text if journal == "journal.json" else text[:9])
    with fresh_directory(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
    assert contents(tmp_path) == {"out/file": b"x"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("same_size", [True, False])
def test_a_shard_that_somebody_has_written_to_is_made_again(
    tmp_path: Path, same_size: bool
) -> None:
    def interrupted() -> None:
        with OutputFolder(tmp_path / "out", stamp="a") as folder:
            for shard in ("kept", "changed"):
                folder.start(shard).write_text("x")
                folder.complete(shard, MergeSums())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    changed = tmp_path / ".out.partial" / "out" / "changed"
    changed.write_text("y" if same_size else "yy")
    os.utime(changed, ns=(1, 1))  # clocks may be coarse
    with OutputFolder(tmp_path / "out", stamp="a") as folder:
        assert list(folder.done) == ["kept"]
        assert not (folder.path / "changed").exists()


def test_work_without_a_stamp_is_never_taken_over(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", stamp=None) as folder:
        folder.start("shard").write_text("x")
        folder.complete("shard", MergeSums())
        shutil.copytree(tmp_path / ".out.partial", tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    with OutputFolder(tmp_path / "out", stamp=None) as folder:
        assert not folder.done
        assert not list(folder.path.iterdir())


# --- which errors cost the work ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (CompatibilityError("it does not stop"), False),
        (DiskSpaceError("full"), True),
        (KeyboardInterrupt(), True),
        (RuntimeError("a bug"), True),
    ],
)
def test_which_errors_cost_the_work(tmp_path: Path, error: BaseException, kept: bool) -> None:
    with pytest.raises(type(error)):
        fail_after_a_half(tmp_path / "out", error, whole=True)
    assert hidden(tmp_path) == ([".out.partial"] if kept else [])
    with OutputFolder(tmp_path / "out", stamp="a") as folder:
        assert dict(folder.done) == ({"whole": MergeSums(num_moved=3)} if kept else {})
        assert [path.name for path in folder.path.iterdir()] == (["whole"] if kept else [])
    assert hidden(tmp_path) == []


def test_nothing_done_is_nothing_to_keep_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError):
        fail_after_a_half(tmp_path / "out", DiskSpaceError("full"), whole=False)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_a_small_file(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", copy)
    pair = api.Pair(models / "base", models / "instruct")
    with pytest.raises(DiskSpaceError):
        api.compute(pair.base, pair.instruct, models / "r")
    with pytest.raises(DiskSpaceError):
        api.apply(models / "cpt", pair, models / "out", options=NO_CHECK)
    assert hidden(models) == []


def test_a_place_that_is_taken_meanwhile_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with OutputFolder(out, stamp="a") as folder:
            folder.start("shard").write_text("x")
            folder.complete("shard", MergeSums())
            out.mkdir()
            (out / "precious").write_text("y")
            folder.publish()

    with pytest.raises(ArtifactError, match="cannot be put into its place"):
        write()
    assert contents(out) == {"precious": b"y"}
    shutil.rmtree(out)
    with OutputFolder(out, stamp="a") as folder:
        assert list(folder.done) == ["shard"]
        folder.publish()
    assert contents(tmp_path) == {"out/shard": b"x"}


def test_an_output_that_only_looks_like_what_was_published(tmp_path: Path) -> None:
    """The user has removed it and made another directory, which may get the same inode."""
    out = tmp_path / "out"
    with OutputFolder(out, stamp="a") as folder:
        folder.start("shard").write_text("x")
        folder.complete("shard", MergeSums())
        folder.publish()
        shutil.copytree(tmp_path / ".out.partial", tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    require_free(out)
    with OutputFolder(out, stamp="a") as folder:
        assert folder.published
        assert folder.path == out
        shutil.copytree(tmp_path / ".out.partial", tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    (out / "shard").unlink()
    (out / "precious").write_text("y")
    with pytest.raises(ArtifactError, match="exists and is not"):
        require_free(out)
    with pytest.raises(ArtifactError, match="exists and is not"), OutputFolder(out, stamp="a"):
        raise AssertionError
    assert contents(out) == {"precious": b"y"}


def test_what_was_published_with_other_small_files_does_not_satisfy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with OutputFolder(out, stamp="a", side_stamp="1") as folder:
        folder.start("shard").write_text("x")
        folder.complete("shard", MergeSums())
        folder.publish()
        shutil.copytree(tmp_path / ".out.partial", tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    with (
        pytest.raises(ArtifactError, match="exists and is not"),
        OutputFolder(out, stamp="a", side_stamp="2"),
    ):
        raise AssertionError
    assert contents(tmp_path) == {"out/shard": b"x"}


def test_shards_are_kept_for_other_small_files(tmp_path: Path) -> None:
    def write() -> None:
        with OutputFolder(tmp_path / "out", stamp="a", side_stamp="1") as folder:
            folder.start("shard").write_text("x")
            folder.complete("shard", MergeSums())
            raise FinalCheckError("it does not stop")

    with pytest.raises(FinalCheckError):
        write()
    with OutputFolder(tmp_path / "out", stamp="a", side_stamp="2") as folder:
        assert list(folder.done) == ["shard"]
