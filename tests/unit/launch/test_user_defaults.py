"""A user whom the system does not know, without a home or with one that takes no files."""

from __future__ import annotations

import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from cpt_residual.launch import environment


@pytest.fixture(autouse=True)
def unknown_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_home_and_a_name_are_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Path.home()
    environment.set_user_defaults()
    home = tmp_path / f"cpt_residual-{os.getuid()}"
    assert Path.home() == home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert getpass.getuser() == f"uid{os.getuid()}"
    before = dict(os.environ)
    environment.set_user_defaults()
    assert os.environ == before


def test_the_folder_of_another_is_not_used(tmp_path: Path) -> None:
    (tmp_path / f"cpt_residual-{os.getuid()}").symlink_to("/")
    environment.set_user_defaults()
    assert Path.home().parent == tmp_path
    assert Path.home().resolve() == Path.home()


def test_a_home_that_takes_no_files_stays_the_home(tmp_path: Path) -> None:
    os.environ["HOME"] = str(tmp_path / "nothing")
    environment.set_user_defaults()
    assert Path.home() == tmp_path / "nothing"
    assert Path(os.environ["MPLCONFIGDIR"]).parent == tmp_path / f"cpt_residual-{os.getuid()}"


def test_a_user_with_a_home_is_left_alone(tmp_path: Path) -> None:
    os.environ.update(HOME=str(tmp_path), USER="ada")
    before = dict(os.environ)
    environment.set_user_defaults()
    assert os.environ == before
