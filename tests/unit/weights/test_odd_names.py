"""Folders and files whose names are no UTF-8, or look like a home."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cpt_residual import api
from cpt_residual.errors import ArtifactError
from support import cli_family

FAST = api.ApplyOptions(verify=False)
ODD = os.fsdecode(b"c\xffpt")


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> api.Pair:
    cli_family.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return api.Pair("base", "instruct")


def test_a_folder_called_like_a_home(pair: api.Pair) -> None:
    shutil.copytree("cpt", "~x")
    assert api.inspect(Path("~x")).kind == "model"
    (report,) = api.apply("~x", pair, Path("o"), options=FAST)
    assert json.loads((report.folder / "merge.json").read_text())["inputs"][0]["name"] == "~x"
    with pytest.raises(ArtifactError, match="target: ~nobody-of-this-name/m is not a directory"):
        api.apply("~nobody-of-this-name/m", pair, Path("p"), options=FAST)


def test_names_that_are_no_utf8(pair: api.Pair, tmp_path: Path) -> None:
    for folder in ("cpt", "instruct"):
        (tmp_path / folder / os.fsdecode(b"odd\xfe.thing")).write_text("x")
    shutil.copytree("cpt", ODD)
    api.compute("base", "instruct", tmp_path / "r")
    assert json.loads((tmp_path / "r/residual.json").read_text())["left_out"] == ["odd\\xfe.thing"]
    out = tmp_path / os.fsdecode(b"o\xff")
    api.apply(ODD, pair, out, options=FAST)
    record = json.loads((out / "merge.json").read_text())
    assert record["name"] == "o\\xff"
    assert record["inputs"][0]["name"] == "c\\xffpt"
    assert not list(tmp_path.glob(".*"))
