"""`cpt-residual data export`: a pack as a data set of other libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cpt_residual.data.packing.pack_format import open_pack
from support.cli_family import Run
from support.data_store import make_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_store(tmp_path / "outputs")


def test_a_pack_is_exported_row_by_row(store: Path, run: Run) -> None:
    done = run("data", "export", "pack:cpt", "--out", "mine", "--json")
    assert done.status == 0, done.stderr
    assert done.document == {"out": "mine", "num_rows": 13, "layout": "parquet"}
    (folder,) = (store / "pack").iterdir()
    view = open_pack(folder)
    table = pq.read_table(Path("mine") / "data")
    for number, record in enumerate(table.to_pylist()):
        ids, positions, labels = view.row(number)
        np.testing.assert_array_equal(record["input_ids"], ids)
        np.testing.assert_array_equal(record["position_ids"], positions)
        np.testing.assert_array_equal(record["labels"], labels)
    assert table.num_rows == 13
    assert (Path("mine") / "pack.json").read_bytes() == (folder / "pack.json").read_bytes()


def test_what_cannot_be_exported_is_refused(store: Path, run: Run) -> None:
    Path("there").mkdir()
    for word, out, why in (
        ("pack:cpt", "there", "there exists"),
        ("corpus:new", "mine", "is a corpus, not a pack"),
        ("source:base", "mine", "is neither a pack nor a corpus"),
        ("nothing", "mine", "there is neither a folder nor an artifact nothing"),
    ):
        done = run("data", "export", word, "--out", out)
        assert done.status == 2, word
        assert why in done.stderr
        assert done.stdout == ""
    assert not Path("mine").exists()


@pytest.mark.parametrize("name", ["sources.npy", "pack.json"])
def test_books_that_are_not_those_of_the_manifest(name: str, store: Path, run: Run) -> None:
    (folder,) = (store / "pack").iterdir()
    content = bytearray((folder / name).read_bytes())
    place = len(content) - 1 if name == "sources.npy" else content.index(b'"eos_id": ') + 10
    content[place] ^= 1
    (folder / name).chmod(0o644)
    (folder / name).write_bytes(content)
    done = run("data", "export", str(folder), "--out", "mine")
    assert done.status == 2, done.stderr
    assert f"{name}: sha256" in done.stderr
    assert not Path("mine").exists()


def test_a_row_of_no_source_is_refused_without_a_manifest(store: Path, run: Run) -> None:
    (folder,) = (store / "pack").iterdir()
    copy = shutil.copytree(folder, "copy", ignore=shutil.ignore_patterns("manifest.json"))
    content = bytearray((Path(copy) / "sources.npy").read_bytes())
    content[-1] = 7
    (Path(copy) / "sources.npy").chmod(0o644)
    (Path(copy) / "sources.npy").write_bytes(content)
    done = run("data", "export", str(copy), "--out", "mine")
    assert done.status == 2, done.stderr
    assert "a row of a source beyond" in done.stderr
    assert not Path("mine").exists()
