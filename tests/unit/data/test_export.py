"""Packs as data sets of the Hugging Face libraries: the same rows come back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from cpt_residual.core import disk, files
from cpt_residual.data.packing.export import ExportLayout, export_pack
from cpt_residual.data.packing.pack_format import PackView, open_pack
from cpt_residual.errors import ConfigError, CorruptArtifactError, DiskSpaceError
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
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{len(view)} rows of {view.sequence_length} tokens" in card
    assert {"parquet": "load_dataset", "hf": "load_from_disk"}[layout] in card
    assert card.startswith("---\nconfigs:") == (layout == "parquet")
    left = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert not left
    assert not (tmp_path / "out" / "scratch").exists()


def test_a_folder_that_exists_is_left_alone(view: PackView, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        export_pack(view.path, tmp_path)


@pytest.mark.parametrize("layout", ["parquet", "hf"])
@pytest.mark.parametrize("file", ["ids.npy", "flags.npy"])
def test_a_damaged_pack_is_not_exported(
    layout: ExportLayout, file: str, view: PackView, tmp_path: Path
) -> None:
    content = bytearray((view.path / file).read_bytes())
    content[-1] ^= 1
    (view.path / file).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        export_pack(view.path, tmp_path / "out", layout=layout)
    assert sorted(tmp_path.iterdir()) == before


def test_it_is_on_the_disk_before_it_appears(
    view: PackView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", list[str]()

    def sync(path: Path) -> None:
        assert not out.exists()
        synced.append(path.name)

    monkeypatch.setattr(files, "sync_file", sync)
    export_pack(view.path, out)
    assert sorted(synced) == sorted(path.name for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize("layout", ["parquet", "hf"])
@pytest.mark.parametrize("known_before", [True, False])
def test_too_little_room_is_named_and_nothing_stays(
    layout: ExportLayout,
    known_before: bool,
    view: PackView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if known_before:
        monkeypatch.setattr(disk, "free_bytes", lambda path: 100)
    else:
        monkeypatch.setattr(files, "sync_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DiskSpaceError, match="not enough disk space at"):
        export_pack(view.path, tmp_path / "out", layout=layout)
    assert sorted(tmp_path.iterdir()) == before
