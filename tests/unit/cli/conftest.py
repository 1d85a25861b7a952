"""The verbs of `cpt-residual`, run in this process on a family of fake models."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cpt_residual.cli import main
from support.cli_family import Done, Run, make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cpt-residual", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("family"))


@pytest.fixture
def family(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of base, instruct and cpt, which is also the current directory."""
    root = Path(shutil.copytree(made, tmp_path / "family"))
    monkeypatch.chdir(root)
    return root
