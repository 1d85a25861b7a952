"""What compute and apply refuse, without touching their output."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_residual.core import disk
from cpt_residual.errors import ArtifactError, CompatibilityError, DiskSpaceError
from cpt_residual.weights.io.reader import ShardReader, map_in_order
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.residual_format import (
    CORRECTIONS_FILE,
    MANIFEST_FILE,
    open_residual,
    require_intact,
)
from cpt_residual.weights.residual.source import PairDelta
from support.merge_family import add, subtract
from support.pico_family import Tensors, fake_model, opened, read_all


def test_every_mismatch_is_listed(tmp_path: Path, tensors: Tensors) -> None:
    base = fake_model(tmp_path / "base", tensors)
    other = dict(tensors)
    other["extra.weight"] = other.pop("model.layers.0.mlp.up_proj.weight")
    other["model.layers.0.input_layernorm.weight"] = torch.ones(5)
    instruct = fake_model(
        tmp_path / "instruct", other, config={"model_type": "qwen2", "tie_word_embeddings": True}
    )
    other["lm_head.weight"] = other["model.embed_tokens.weight"].clone()
    with pytest.raises(CompatibilityError) as caught:
        subtract(base, instruct, tmp_path / "residual")
    text = str(caught.value)
    assert text.startswith("base does not fit instruct (4 of 6 tensors)")
    assert "config.json model_type: base llama vs instruct qwen2" in text
    assert "config.json tie_word_embeddings: base False vs instruct True" in text
    assert "extra.weight:                          base missing vs instruct (6, 4)" in text
    assert "model.layers.0.mlp.up_proj.weight:     base (6, 4) vs instruct missing" in text
    assert "model.layers.0.input_layernorm.weight: base (4,) vs instruct (5,)" in text
    assert "Nothing is skipped, cut or resized." in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["base", "instruct", "target"])
def test_values_that_are_not_finite(
    stored: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors, where: str, value: float
) -> None:
    bad = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        bad[name][1, 2] = value
    broken = fake_model(tmp_path / "broken", bad)
    base, instruct, residual = stored
    refused = {
        "base": lambda out: subtract(broken, instruct, out),
        "instruct": lambda out: subtract(base, broken, out),
        "target": lambda out: add(broken, residual, out),
    }
    with pytest.raises(CompatibilityError) as caught:
        refused[where](tmp_path / "out")
    assert caught.value.problems == (
        f"lm_head.weight: NaN or Inf in {where}",
        f"model.layers.0.mlp.up_proj.weight: NaN or Inf in {where}",
    )
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    if where != "target":  # a merge that reads the pair names it too
        sides = {"base": base, "instruct": instruct, where: broken}
        pair = PairDelta(**{role: opened(folder, role) for role, folder in sides.items()})
        with pytest.raises(CompatibilityError) as direct:
            merge(opened(base), pair, [Output(1.0, tmp_path / "out")])
        assert direct.value.problems == caught.value.problems


def test_overflow_is_refused(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    start = {name: torch.full((2,), 3e38) for name in ("a", "b")}
    low = fake_model(tmp_path / "low", {name: -value for name, value in start.items()})
    high = fake_model(tmp_path / "high", start)
    with pytest.raises(CompatibilityError, match="a: instruct - base is larger than fp32 can hold"):
        subtract(low, high, tmp_path / "out")
    half = {name: torch.full((2,), 6e4, dtype=torch.float16) for name in ("a", "b")}
    zero = fake_model(tmp_path / "zero", {name: value * 0 for name, value in half.items()})
    top = fake_model(tmp_path / "top", half)
    subtract(zero, top, tmp_path / "top-residual")
    near = fake_model(tmp_path / "near", {name: value * 0.9 for name, value in half.items()})
    with pytest.raises(CompatibilityError, match=r"a: target \+ alpha \* residual is larger than"):
        add(near, tmp_path / "top-residual", tmp_path / "out")


def test_nan_in_a_stored_residual(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shard = next(iter(open_residual(stored[2]).shards))
    with shard.path.open("r+b") as file:
        file.seek(shard.tensors[0].offset)
        file.write(np.float32("nan").tobytes())
    with pytest.raises(CompatibilityError, match="NaN or Inf in residual"):
        add(stored[0], stored[2], tmp_path / "out")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(
    stored: tuple[Path, Path, Path], tmp_path: Path, alpha: float
) -> None:
    with pytest.raises(CompatibilityError, match="alpha is"):
        add(stored[0], stored[2], tmp_path / "out", alpha=alpha)


def test_nothing_is_overwritten(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, instruct, residual = stored
    before = {path: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(ArtifactError, match="exists and is not an empty directory"):
        add(base, residual, base)
    assert before == {path: path.read_bytes() for path in base.iterdir()}
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="exists and is not"):
        subtract(base, instruct, tmp_path / "link")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial").mkdir()  # left by a kill
    add(base, residual, tmp_path / "empty")
    assert read_all(tmp_path / "empty")


def test_a_full_disk(
    stored: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10)
    with pytest.raises(DiskSpaceError, match="not enough disk space"):
        add(stored[0], stored[2], tmp_path / "out")
    monkeypatch.undo()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskSpaceError):
        subtract(stored[0], stored[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_cut_while_it_is_read(stored: tuple[Path, Path, Path]) -> None:
    checkpoint = opened(stored[0])
    with ShardReader(checkpoint.shards) as opened_reader:
        entry = checkpoint.shards[0].tensors[-1]
        os.truncate(checkpoint.shards[0].path, entry.offset + 3)
        with pytest.raises(ArtifactError, match="ended inside"):
            opened_reader.read(entry, 0, entry.num_elements)


def test_a_failure_in_one_block_ends_the_pass() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ArtifactError("broken")
        done.append(item)
        return item

    with pytest.raises(ArtifactError, match="broken"):
        list(map_in_order(work, range(10_000), threads=2))
    assert len(done) < 20
    assert list(map_in_order(str, range(5), threads=2)) == ["0", "1", "2", "3", "4"]


def test_an_edited_residual(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(stored[2], tmp_path / name))

    edited = copy("a")
    fields = json.loads((edited / MANIFEST_FILE).read_text())
    fields["tensors"]["lm_head.weight"]["shape"] = [4, 8]
    fields["tensors"]["ghost"] = fields["tensors"]["lm_head.weight"]
    fields["num_rounded"] = 4
    (edited / MANIFEST_FILE).write_text(json.dumps(fields))
    with pytest.raises(ArtifactError) as caught:
        open_residual(edited)
    assert caught.value.problems == (
        "ghost: residual.json and the shards disagree",
        "lm_head.weight: residual.json and the shards disagree",
        "corrections.safetensors: 0 entries, not 4",
    )
    (edited / CORRECTIONS_FILE).write_bytes(b"\0" * 40)
    with pytest.raises(ArtifactError, match="0 entries, not 4"):
        open_residual(edited)
    fields["surprise"] = 1
    (edited / MANIFEST_FILE).write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=r"not a residual of this version\n  surprise"):
        open_residual(edited)
    with pytest.raises(ArtifactError, match="is missing"):
        open_residual(tmp_path)


def test_a_damaged_residual_is_not_added(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    artifact = open_residual(stored[2])
    shard = artifact.shards[0]
    with shard.path.open("r+b") as file:
        file.seek(shard.tensors[0].offset)
        file.write(np.float32(1e9).tobytes())
    with pytest.raises(ArtifactError, match=r"The residual is not what was written\n  alpha \* "):
        add(stored[0], stored[2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match=f"{shard.name}: sha256 .*, recorded "):
        require_intact(artifact, threads=2)
    again = subtract(stored[0], stored[1], tmp_path / "again")
    assert again.files == artifact.manifest.files
