"""Outputs appear whole or not at all, whoever else is at work and whenever it is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual import api
from cpt_residual.errors import ArtifactError, BusyError, CompatibilityError, DiskSpaceError
from cpt_residual.weights.delta import PairDelta
from cpt_residual.weights.input_files import InputFiles
from cpt_residual.weights.interop.residuals_delta import package_delta
from cpt_residual.weights.interop.residuals_package import (
    read_residuals_layout,
    write_residuals_layout,
)
from cpt_residual.weights.kernels import MergeSums
from cpt_residual.weights.merge import Output, merge
from cpt_residual.weights.reader import Streaming
from cpt_residual.weights.residual import compute
from cpt_residual.weights.residual_format import open_residual
from cpt_residual.weights.staging import OutputFolder, fresh_directory, require_free
from support.commands import environment
from support.pico_family import Tensors, fake_model, opened

NO_CHECK = api.ApplyOptions(verify=False)


@pytest.fixture
def family(tmp_path: Path, tensors: Tensors) -> Path:
    """base, instruct and a target of two shards."""
    for number, name in enumerate(("base", "instruct", "cpt")):
        moved = {key: value * (1 + number) for key, value in tensors.items()}
        fake_model(tmp_path / name, moved, num_shards=2 if name == "cpt" else 1)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


# --- one at a time -------------------------------------------------------------------------------
HOLDER = """
import sys
from pathlib import Path
from cpt_residual.weights.staging import OutputFolder
with OutputFolder(Path(sys.argv[1]), stamp="a") as folder:
    (folder.path / "file").write_text("first")
    print("ready", flush=True)
    sys.stdin.read()
    folder.publish()
"""


def test_another_process_is_named_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
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
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    first.kill()
    first.communicate()
    assert hidden(tmp_path) == [".out.partial", ".out.partial.lock"]
    with fresh_directory(out) as folder:
        (folder / "file").write_text("second")
    assert contents(out) == {"file": b"second"}
    assert hidden(tmp_path) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(ArtifactError, match="out cannot be locked"),
        fresh_directory(tmp_path / "out"),
    ):
        raise AssertionError


# --- whose files they are ------------------------------------------------------------------------
def test_what_is_not_ours_is_not_removed(family: Path) -> None:
    precious = family / ".out.partial" / "precious"
    precious.parent.mkdir()
    precious.write_text("x")
    pair = PairDelta(opened(family / "base"), opened(family / "instruct"))
    with pytest.raises(ArtifactError, match="in the way"):
        merge(opened(family / "cpt"), pair, [Output(1.0, family / "out")])
    (precious.parent / "journal.json").write_text("{}")
    with pytest.raises(ArtifactError, match="in the way"):
        compute(opened(family / "base"), opened(family / "instruct"), family / "out")
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
def fail_after_a_half(out: Path, error: BaseException, *, whole: bool) -> None:
    with OutputFolder(out, stamp="a") as folder:
        if whole:
            folder.start("whole").write_text("x")
            folder.complete("whole", MergeSums(num_moved=3))
        folder.start("half").write_text("y")
        raise error


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
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", copy)
    pair = api.Pair(family / "base", family / "instruct")
    with pytest.raises(DiskSpaceError):
        api.compute(pair.base, pair.instruct, family / "r")
    with pytest.raises(DiskSpaceError):
        api.apply(family / "cpt", pair, family / "out", options=NO_CHECK)
    assert hidden(family) == []


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


# --- everything is on the disk before it appears -------------------------------------------------
def test_every_file_is_forced_to_the_disk(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    renamed: dict[str, int] = {}
    real_sync, real_rename = os.fsync, os.rename

    def sync(handle: int) -> None:
        real_sync(handle)
        stat = os.fstat(handle)
        synced.append((stat.st_ino, stat.st_mtime_ns))

    def rename(source: Path, target: Path) -> None:
        real_rename(source, target)
        renamed[Path(target).name] = len(synced)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    pair = api.Pair(family / "base", family / "instruct")
    api.compute(pair.base, pair.instruct, family / "r")
    api.apply(family / "cpt", pair, family / "applied", options=NO_CHECK)
    merge(
        opened(family / "cpt"),
        PairDelta(opened(family / "base"), opened(family / "instruct")),
        [Output(1.0, family / "merged")],
    )
    write_residuals_layout(open_residual(family / "r"), family / "package")
    for name in ("r", "applied", "merged", "package"):
        out = family / name
        before, after = synced[: renamed[name]], synced[renamed[name] :]
        found = [(path, path.stat()) for path in out.rglob("*")]
        missing = [path for path, stat in found if (stat.st_ino, stat.st_mtime_ns) not in before]
        assert missing == []
        assert out.stat().st_ino in [inode for inode, _ in before]
        assert family.stat().st_ino in [inode for inode, _ in after]


# --- a kill at any moment ------------------------------------------------------------------------
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")


def killed_at(moment: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs `work` in a child that is gone, without a word, before its change number `moment` to any
    directory; whether it came to that."""
    child = os.fork()
    if not child:
        left = [moment]

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def change(*arguments: object, **named: object) -> object:
                if not left[0]:
                    os._exit(9)
                left[0] -= 1
                return real(*arguments, **named)

            return change

        try:
            for name in CHANGES:
                monkeypatch.setattr(os, name, dying(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def refused(work: Callable[[], object]) -> str:
    """What `work` says against the place of its output, if it does."""
    try:
        work()
    except ArtifactError as error:
        return str(error)
    return ""


def test_a_kill_at_any_moment_of_an_apply(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is there is whole; the same call makes the rest; nothing else is left."""
    monkeypatch.setattr("cpt_residual.api.job.code_version", lambda: "1")  # asks git
    pair = api.Pair(family / "base", family / "instruct")
    (family / "runs").mkdir()

    def work(out: Path) -> object:
        return api.apply(family / "cpt", pair, out, alphas=[0.5, 1.0], options=NO_CHECK)

    work(family / "expected")
    expected = contents(family / "expected")
    moment, num_published = 0, set[int]()
    while True:
        out = family / "runs" / "out"
        if not killed_at(moment, lambda out=out: work(out), monkeypatch):
            break
        there = sorted(path for path in out.glob("alpha_*"))
        for path in there:
            assert contents(path) == contents(family / "expected" / path.name)
        num_published.add(len(there))
        refusal = refused(lambda out=out: work(out))
        if refusal:
            assert "exists and is not an empty directory" in refusal
            assert len(there) == 2, "there was nothing left to do"
        else:
            assert hidden(family / "runs") == []
        for name in ("alpha_0.5", "alpha_1.0"):
            assert contents(out / name) == contents(family / "expected" / name)
        moment += 1
        shutil.rmtree(family / "runs")
        (family / "runs").mkdir()
    assert num_published == {0, 1, 2}
    assert contents(out) == expected


def test_a_kill_at_any_moment_of_a_compute(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (family / "runs").mkdir()

    def work(out: Path) -> object:
        return api.compute(family / "base", family / "instruct", out)

    work(family / "expected")
    expected = contents(family / "expected")
    out, moment = family / "runs" / "out", 0
    while killed_at(moment, lambda: work(out), monkeypatch):
        if out.exists():
            assert contents(out) == expected
            with pytest.raises(ArtifactError, match="exists and is not"):
                work(out)
        else:
            work(out)
            assert hidden(family / "runs") == []
        assert contents(out) == expected
        shutil.rmtree(family / "runs")
        (family / "runs").mkdir()
        moment += 1
    assert moment > 10


def test_a_kill_while_other_work_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it is still known as ours."""

    def work() -> None:
        with OutputFolder(tmp_path / "out", stamp="b"):
            pass

    for moment in range(4):
        with pytest.raises(KeyboardInterrupt):
            fail_after_a_half(tmp_path / "out", KeyboardInterrupt(), whole=True)
        assert killed_at(moment, work, monkeypatch)
        work()
        assert hidden(tmp_path) == []


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


# --- where outputs may lie -----------------------------------------------------------------------
def test_the_current_directory_is_a_directory_like_any_other(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.Pair(family / "base", family / "instruct")
    api.compute(pair.base, pair.instruct, family / "r")
    api.apply(family / "cpt", pair, family / "o", options=NO_CHECK)
    merge(
        opened(family / "cpt"),
        PairDelta(opened(family / "base"), opened(family / "instruct")),
        [Output(1.0, family / "m")],
    )
    works: dict[str, Callable[[], object]] = {
        "r": lambda: api.compute(pair.base, pair.instruct, Path()),
        "o": lambda: api.apply(family / "cpt", pair, Path("x/.."), options=NO_CHECK),
        "m": lambda: merge(
            opened(family / "cpt"),
            PairDelta(opened(family / "base"), opened(family / "instruct")),
            [Output(1.0, Path())],
        ),
    }
    for name, work in works.items():
        here = family / "here" / name
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        work()
        monkeypatch.undo()
        assert contents(here) == contents(family / name)
        assert hidden(family / "here") == []


def test_outputs_do_not_lie_in_inputs(family: Path, tensors: Tensors) -> None:
    pair = api.Pair(family / "base", family / "instruct")
    api.compute(pair.base, pair.instruct, family / "r")
    lora = family / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}'
    )
    (family / "way").symlink_to("base")
    base, cpt, residual = family / "base", family / "cpt", family / "r"
    before = contents(family)
    works: list[tuple[Path, Callable[[Path], object]]] = [
        (base, lambda out: api.compute(base, pair.instruct, out)),
        (family / "way", lambda out: api.compute(base, pair.instruct, out)),
        (family / "instruct", lambda out: api.plan_compute(base, pair.instruct, out)),
        (cpt, lambda out: api.apply(cpt, pair, out, options=NO_CHECK)),
        (base, lambda out: api.apply(cpt, pair, out, alphas=[0.5, 1.0], options=NO_CHECK)),
        (residual, lambda out: api.apply(cpt, residual, out, options=NO_CHECK)),
        (residual, lambda out: api.plan_apply(cpt, residual, out)),
        (residual / "instruct", lambda out: api.apply(cpt, residual, out, options=NO_CHECK)),
        (
            cpt,
            lambda out: merge(opened(cpt), PairDelta(opened(base), opened(base)), [Output(1, out)]),
        ),
        (residual, lambda out: write_residuals_layout(open_residual(residual), out)),
        (lora, lambda out: api.apply(lora, pair, out, options=NO_CHECK)),
        (lora, lambda out: api.plan_apply(lora, pair, out)),
    ]
    for place, work in works:
        with pytest.raises(ArtifactError, match="lies in what is read") as caught:
            work(place / "out")
        assert "input: " in caught.value.problems[0]
    assert contents(family) == before
    assert hidden(family) == []


# --- what a stamp sees ---------------------------------------------------------------------------
def test_a_stamp_sees_every_input(family: Path) -> None:
    first, second = opened(family / "base"), opened(family / "instruct")
    compute(first, second, family / "r")
    write_residuals_layout(open_residual(family / "r"), family / "package")
    own = family / "package" / "cpt_residual.json"
    delta = package_delta(read_residuals_layout(family / "package"), opened(family / "cpt"))
    files = InputFiles.of(
        [opened(family / "cpt")], folders=[delta.instruct_side], files=delta.files
    )
    stamp = files.stamp(alpha=1.0)
    files.require_unchanged()
    assert files.stamp(alpha=0.5) != stamp
    for path in (own, family / "cpt" / "tokenizer.json"):
        stat = path.stat()
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + b" ")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(ArtifactError, match=path.name):
            files.require_unchanged()
        changed = InputFiles.of(
            [opened(family / "cpt")], folders=[delta.instruct_side], files=delta.files
        )
        assert changed.stamp(alpha=1.0) != stamp
        files, stamp = changed, changed.stamp(alpha=1.0)


def test_models_that_change_while_their_residual_is_computed(family: Path) -> None:
    shard = family / "instruct" / "model.safetensors"

    def progress(done: int, total: int, unit: str) -> None:
        last = shard.read_bytes()[-1:]
        with shard.open("r+b") as file:  # the same bytes: only that it was written is seen
            file.seek(-1, os.SEEK_END)
            file.write(last)

    streaming = Streaming(progress=progress)
    with pytest.raises(ArtifactError, match="changed while they were read") as caught:
        api.compute(family / "base", family / "instruct", family / "r", streaming=streaming)
    assert caught.value.problems == (str(shard),)
    assert not (family / "r").exists()
    assert hidden(family) == []
