from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cpt_residual.core.lock import describe_holder, hold
from cpt_residual.errors import ArtifactError, BusyError


def test_nobody_holds_a_lock_that_does_not_exist(tmp_path: Path) -> None:
    assert describe_holder(tmp_path / "a.lock") is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_excludes_a_second_holder_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a.lock"
    with hold(path, name="cpt:base"):
        assert "process" in (describe_holder(path) or "")
        with pytest.raises(BusyError, match="cpt:base is busy"), hold(path, name="cpt:base"):
            raise AssertionError
    assert describe_holder(path) is None
    with hold(path, name="cpt:base"):
        pass


def test_a_lock_file_that_its_last_holder_has_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened before it went: its lock keeps nobody away any more."""
    path, real, opened = tmp_path / "a.lock", os.open, list[Path]()

    def open_too_early(name: Path, *arguments: int) -> int:
        handle = real(name, *arguments)
        if not opened:
            path.unlink()
        opened.append(path)
        return handle

    monkeypatch.setattr(os, "open", open_too_early)
    with hold(path, name="a"):
        assert len(opened) == 2
        with pytest.raises(BusyError), hold(path, name="a"):
            raise AssertionError


def test_a_holder_without_a_name_is_still_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with hold(path, name="a"):
        path.write_text("")
        assert describe_holder(path) == "another process"
        with pytest.raises(BusyError, match="another process"), hold(path, name="a"):
            raise AssertionError


def test_a_probe_of_a_moment_does_not_look_like_a_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = fcntl.flock, [2]

    def flock(handle: int, operation: int) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise BlockingIOError
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(tmp_path / "a.lock", name="a"):
        assert refusals == [0]


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ArtifactError, match="cannot be locked"), hold(tmp_path / "a", name="a"):
        raise AssertionError
    with pytest.raises(ArtifactError, match=r"Set paths\.root"):
        describe_holder(tmp_path / "a")
