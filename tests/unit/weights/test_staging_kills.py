"""Outputs appear whole or not at all, whenever the work is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual import api
from cpt_residual.errors import ArtifactError
from cpt_residual.weights.interop.residuals_folder import (
    write_residuals_folder,
)
from cpt_residual.weights.io.output_dir import OutputFolder
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta
from support.pico_family import opened
from support.staged import NO_CHECK, contents, fail_after_a_half, hidden


# --- everything is on the disk before it appears -------------------------------------------------
def test_every_file_is_forced_to_the_disk(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    pair = api.Pair(models / "base", models / "instruct")
    api.compute(pair.base, pair.instruct, models / "r")
    api.apply(models / "cpt", pair, models / "applied", options=NO_CHECK)
    merge(
        opened(models / "cpt"),
        PairDelta(opened(models / "base"), opened(models / "instruct")),
        [Output(1.0, models / "merged")],
    )
    write_residuals_folder(open_residual(models / "r"), models / "package")
    for name in ("r", "applied", "merged", "package"):
        out = models / name
        before, after = synced[: renamed[name]], synced[renamed[name] :]
        found = [(path, path.stat()) for path in out.rglob("*")]
        missing = [path for path, stat in found if (stat.st_ino, stat.st_mtime_ns) not in before]
        assert missing == []
        assert out.stat().st_ino in [inode for inode, _ in before]
        assert models.stat().st_ino in [inode for inode, _ in after]


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


def test_a_kill_at_any_moment_of_an_apply(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is there is whole; the same call makes the rest; nothing else is left."""
    monkeypatch.setattr("cpt_residual.weights.apply.job.code_version", lambda: "1")  # asks git
    pair = api.Pair(models / "base", models / "instruct")
    (models / "runs").mkdir()

    def work(out: Path) -> object:
        return api.apply(models / "cpt", pair, out, alphas=[0.5, 1.0], options=NO_CHECK)

    work(models / "expected")
    expected = contents(models / "expected")
    moment, num_published = 0, set[int]()
    while True:
        out = models / "runs" / "out"
        if not killed_at(moment, lambda out=out: work(out), monkeypatch):
            break
        there = sorted(path for path in out.glob("alpha_*"))
        for path in there:
            assert contents(path) == contents(models / "expected" / path.name)
        num_published.add(len(there))
        refusal = refused(lambda out=out: work(out))
        if refusal:
            assert "exists and is not an empty directory" in refusal
            assert len(there) == 2, "there was nothing left to do"
        else:
            assert hidden(models / "runs") == []
        for name in ("alpha_0.5", "alpha_1.0"):
            assert contents(out / name) == contents(models / "expected" / name)
        moment += 1
        shutil.rmtree(models / "runs")
        (models / "runs").mkdir()
    assert num_published == {0, 1, 2}
    assert contents(out) == expected


def test_a_kill_at_any_moment_of_a_compute(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "runs").mkdir()

    def work(out: Path) -> object:
        return api.compute(models / "base", models / "instruct", out)

    work(models / "expected")
    expected = contents(models / "expected")
    out, moment = models / "runs" / "out", 0
    while killed_at(moment, lambda: work(out), monkeypatch):
        if out.exists():
            assert contents(out) == expected
            with pytest.raises(ArtifactError, match="exists and is not"):
                work(out)
        else:
            work(out)
            assert hidden(models / "runs") == []
        assert contents(out) == expected
        shutil.rmtree(models / "runs")
        (models / "runs").mkdir()
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
