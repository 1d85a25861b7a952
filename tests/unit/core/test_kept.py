"""What is kept spares work, and is used only when it is whole and one's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpt_residual.core import kept


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    assert kept.recall("name", folders) is None
    kept.keep("name", b"content", folders)
    assert kept.recall("name", folders) == b"content"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["name"]


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda _: b""])
def test_what_is_not_whole_is_not_recalled(change: object, tmp_path: Path) -> None:
    kept.keep("name", b"content", [tmp_path])
    assert callable(change)
    (tmp_path / "name").write_bytes(change((tmp_path / "name").read_bytes()))
    assert kept.recall("name", [tmp_path]) is None


def test_a_folder_that_takes_nothing_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    kept.keep("name", b"content", [tmp_path / "file", tmp_path / "other"])
    assert kept.recall("name", [tmp_path / "file", tmp_path / "other"]) == b"content"
    kept.keep("name", b"content", [tmp_path / "file"])
    kept.keep("name", b"content", [])


def test_what_somebody_else_has_put_there_is_not_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.keep("name", b"content", [tmp_path])
    if os.geteuid() == 0:
        os.chown(tmp_path / "name", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "name").stat().st_uid + 1)
    assert kept.recall("name", [tmp_path]) is None


def test_what_was_kept_under_another_name_is_not_recalled(tmp_path: Path) -> None:
    kept.keep("one", b"content", [tmp_path])
    (tmp_path / "one").rename(tmp_path / "other")
    assert kept.recall("other", [tmp_path]) is None


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", home)
    assert list(kept.user_folder()) == []


@pytest.mark.parametrize("home", ["relative", "/no/such/home"])
def test_no_home_is_made(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    assert list(kept.user_folder()) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(kept.user_folder()) == [tmp_path / ".cache" / "cpt_residual"]


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(kept._MOST_BYTES + 1)
    for name in ("pipe", "endless", "folder", "large"):
        assert kept.recall(name, [tmp_path]) is None
