"""The small files of a model directory: copied, read strictly, and asked where texts end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import copy_files, eos_ids_of, read_json_object


def write(folder: Path, **values: object) -> None:
    for stem, value in values.items():
        (folder / f"{stem}.json").write_text(json.dumps({"eos_token_id": value}))


def test_eos_ids_are_those_of_both_configs_each_once(tmp_path: Path) -> None:
    assert eos_ids_of(tmp_path) == []
    write(tmp_path, config=[1, 7])
    assert eos_ids_of(tmp_path) == [1, 7]
    write(tmp_path, generation_config=[4, 1])
    assert eos_ids_of(tmp_path) == [4, 1, 7]
    write(tmp_path, generation_config=9, config=None)
    assert eos_ids_of(tmp_path) == [9]


@pytest.mark.parametrize("value", [True, "4", [4, None], -1, 4.0])
def test_what_is_no_id_is_an_error_with_a_remedy(tmp_path: Path, value: object) -> None:
    write(tmp_path, config=value)
    with pytest.raises(ArtifactError, match="is not an id or a list of ids") as caught:
        eos_ids_of(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "the top level is not an object"),
        ('{"a": 1, "a": 2}', "repeated keys: a"),
        (None, "base: .* is missing"),
    ],
)
def test_a_file_that_holds_no_plain_object(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_json_object(tmp_path / "config.json", "base")
    assert caught.value.remedy


def test_only_what_is_there_is_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    write(source, config=1)
    assert copy_files(source, out, ("config.json", "tokenizer.json")) == ["config.json"]
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_links_that_leave_the_directory_are_not_copied(tmp_path: Path) -> None:
    model, out, blobs = tmp_path / "model", tmp_path / "out", tmp_path / "hub" / "blobs"
    snapshot = tmp_path / "hub" / "snapshots" / ("a" * 40)
    for folder in (model, out, blobs, snapshot):
        folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (blobs / "1").write_text("{}")
    (model / "vocab.txt").symlink_to(tmp_path / "secret")
    (snapshot / "vocab.txt").symlink_to("../../blobs/1")
    with pytest.raises(ArtifactError, match="links that leave the directory") as caught:
        copy_files(model, out, ("vocab.txt",))
    assert caught.value.problems == (f"vocab.txt -> {tmp_path / 'secret'}",)
    assert not list(out.iterdir())
    assert copy_files(snapshot, out, ("vocab.txt",)) == ["vocab.txt"]
    assert (out / "vocab.txt").read_text() == "{}"
