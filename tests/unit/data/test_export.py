"""Packs as data sets of the Hugging Face libraries: the same rows come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from cpt_residual.data.export import ExportLayout, export_pack
from cpt_residual.data.packing import PackView, open_pack
from cpt_residual.errors import ConfigError
from support.packs import byte_texts, pack, plan, write_texts


@pytest.fixture
def view(tmp_path: Path) -> PackView:
    sources = [
        byte_texts(write_texts(tmp_path / "a.jsonl", ["abc", "defghij" * 3]), "a", share=0.5),
        byte_texts(write_texts(tmp_path / "b.jsonl", ["kl" * 9]), "b", share=0.5),
    ]
    pack(tmp_path / "pack", sources, plan(8, 100, repeat=True))
    return open_pack(tmp_path / "pack")


def load(layout: ExportLayout, folder: Path, cache: Path) -> Any:
    if layout == "hf":
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


@pytest.mark.parametrize("layout", ["parquet", "hf"])
def test_the_rows_come_back(layout: ExportLayout, view: PackView, tmp_path: Path) -> None:
    assert export_pack(view.path, tmp_path / "out", layout=layout) == len(view)
    found = load(layout, tmp_path / "out", tmp_path / "cache")
    assert len(found) == len(view)
    for number, record in enumerate(found):
        for name, column in zip(
            ("input_ids", "position_ids", "labels"), view.row(number), strict=True
        ):
            assert record[name] == column.tolist()
        assert record["source"] == view.row_sources[number]
    ledger = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert ledger["rows_sha256"] == view.ledger.rows_sha256
    assert set(np.array(view.row_sources).tolist()) == {0, 1}
    left = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert not left
    assert not (tmp_path / "out" / "scratch").exists()


def test_a_folder_that_exists_is_left_alone(view: PackView, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        export_pack(view.path, tmp_path)
