"""What compute and apply write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cpt_residual.core.hashing import file_sha256
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.weights.io import writer
from cpt_residual.weights.io.reader import Streaming
from cpt_residual.weights.io.shard_header import read_shard
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import (
    CORRECTIONS_FILE,
    open_residual,
)
from support.merge_family import add, moved, subtract
from support.pico_family import Tensors, fake_model, opened, read_all, same_bits


def test_the_residual_directory(stored: tuple[Path, Path, Path], tensors: Tensors) -> None:
    base, instruct, folder = stored
    found = read_all(folder)
    for name, value in moved(tensors, 0.01).items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.float() - tensors[name].float())
    assert sorted(path.name for path in folder.iterdir()) == [
        "instruct",
        "residual-00001-of-00002.safetensors",
        "residual-00002-of-00002.safetensors",
        "residual.json",
    ]
    manifest = open_residual(folder).manifest
    assert manifest.bit_exact
    assert manifest.token_map_hash == token_map_hash(load_tokenizer(base))
    assert manifest.num_parameters == 108
    assert manifest.tied == {}
    assert manifest.base.shards == {"model.safetensors": file_sha256(base / "model.safetensors")}
    assert list(manifest.instruct.shards) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    record = manifest.tensors["lm_head.weight"]
    assert record.residual_norm == pytest.approx(float(found["lm_head.weight"].norm()))
    assert record.base_norm == pytest.approx(float(tensors["lm_head.weight"].float().norm()))
    total = sum(float(value.double().square().sum()) for value in found.values()) ** 0.5
    assert manifest.residual_norm == pytest.approx(total)
    assert (folder / "instruct" / "tokenizer.json").is_file()
    assert (folder / "instruct" / "config.json").read_bytes() == (
        instruct / "config.json"
    ).read_bytes()


def test_the_same_inputs_give_the_same_bytes(
    stored: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, instruct, folder = stored
    compute(
        opened(base, "base"),
        opened(instruct, "instruct"),
        tmp_path / "again",
        streaming=Streaming(threads=1),
    )
    for path in folder.rglob("*"):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(folder)
            assert again.read_bytes() == path.read_bytes(), path.name
            assert str(tmp_path).encode() not in path.read_bytes()


def test_the_merge_keeps_layout_index_and_metadata(
    stored: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors
) -> None:
    target = fake_model(tmp_path / "target", moved(tensors, 0.02, seed=5), num_shards=3)
    seen: list[tuple[int, int, str]] = []
    streaming = Streaming(progress=lambda *args: seen.append(args))
    report = add(target, stored[2], tmp_path / "out", 0.5, streaming)
    assert seen[-1] == (108, 108, "parameters")
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (target / index).read_bytes()
    for shard in target.glob("*.safetensors"):
        assert read_shard(tmp_path / "out" / shard.name).header == read_shard(shard).header
        with safe_open(tmp_path / "out" / shard.name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    start, delta = read_all(target), read_all(stored[2])
    for name, value in read_all(tmp_path / "out").items():
        expected = (start[name].double() + 0.5 * delta[name].double()).to(torch.bfloat16)
        assert torch.equal(value, expected)
    flat, moves = (torch.cat([v.double().flatten() for v in t.values()]) for t in (start, delta))
    assert report.num_parameters == 108
    assert report.target_norm == pytest.approx(float(flat.norm()))
    assert report.residual_norm == pytest.approx(0.5 * float(moves.norm()))
    assert report.relative_norm == pytest.approx(report.residual_norm / report.target_norm)
    assert 0.0 < report.lost_share < 0.5
    assert report.eos_token_ids == (1,)
    assert not list(tmp_path.glob(".*"))


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path, tensors: Tensors) -> None:
    tied = {"tie_word_embeddings": True}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    after = moved(tensors, 0.01)
    after["lm_head.weight"] = after["model.embed_tokens.weight"].clone()
    base = fake_model(tmp_path / "base", tensors, config=tied)
    alone = {name: value for name, value in after.items() if name != "lm_head.weight"}
    instruct = fake_model(tmp_path / "instruct", alone, config=tied)
    manifest = subtract(base, instruct, tmp_path / "residual")
    assert "lm_head.weight" not in manifest.tensors
    assert manifest.num_parameters == 76
    report = add(base, tmp_path / "residual", tmp_path / "out")
    assert report.num_parameters == 76
    found = read_all(tmp_path / "out")
    for name, value in after.items():
        assert same_bits(found[name], value)
    both = fake_model(tmp_path / "both", after, config=tied)
    again = subtract(base, both, tmp_path / "residual2")
    assert again.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert again.residual_norm == manifest.residual_norm


def test_a_shard_that_holds_only_a_tied_copy_is_left_out(tmp_path: Path, tensors: Tensors) -> None:
    two = {
        "model.embed_tokens.weight": tensors["model.embed_tokens.weight"],
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    folder = fake_model(tmp_path / "m", two, num_shards=2, config={"tie_word_embeddings": True})
    subtract(folder, folder, tmp_path / "residual")
    assert len(list((tmp_path / "residual").glob("residual-*"))) == 1


def test_tied_by_config_but_stored_with_other_values(tmp_path: Path, tensors: Tensors) -> None:
    tied = {"tie_word_embeddings": True}
    base = fake_model(tmp_path / "base", tensors, config=tied)
    with pytest.raises(CompatibilityError) as caught:
        subtract(base, base, tmp_path / "residual")
    assert "lm_head.weight is stored with other values than model.embed" in str(caught.value)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    mixed = fake_model(tmp_path / "mixed", tensors, config=tied)
    with pytest.raises(CompatibilityError, match=r"lm_head.weight F32 \(8, 4\) vs BF16 \(8, 4\)"):
        subtract(mixed, mixed, tmp_path / "residual")
    assert not (tmp_path / "residual").exists()


def test_corrections_are_kept_beside_the_shards(tmp_path: Path, tensors: Tensors) -> None:
    base = {name: value.float() for name, value in tensors.items()}
    after = {name: value.float() for name, value in moved(tensors, 1.0).items()}
    after = {name: value * 1.1 for name, value in after.items()}
    folders = fake_model(tmp_path / "base", base), fake_model(tmp_path / "instruct", after)
    manifest = subtract(*folders, tmp_path / "residual")
    assert manifest.num_rounded > 0
    assert manifest.bit_exact
    kept = load_file(tmp_path / "residual" / CORRECTIONS_FILE)
    assert kept["index"].numel() == kept["value"].numel() == manifest.num_rounded
    add(folders[0], tmp_path / "residual", tmp_path / "out")
    for name, value in read_all(tmp_path / "out").items():
        assert same_bits(value, after[name])


def test_file_systems_that_cannot_reserve(
    stored: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    subtract(stored[0], stored[1], tmp_path / "out")
    assert read_all(tmp_path / "out").keys() == read_all(stored[2]).keys()

    def broken(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output"):
        writer.ShardWriter(tmp_path / "file", header=b"", num_bytes=1)


def test_mixed_dtypes(tmp_path: Path, tensors: Tensors) -> None:
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    folders = {
        name: fake_model(
            tmp_path / name, {key: value.to(dtype) for key, value in moved(tensors, 0.1).items()}
        )
        for name, dtype in mixed.items()
    }
    base = fake_model(tmp_path / "base", tensors)
    for name, folder in folders.items():
        assert subtract(base, folder, tmp_path / f"residual-{name}").bit_exact
    wide = fake_model(tmp_path / "wide", {name: value.float() for name, value in tensors.items()})
    add(wide, tmp_path / "residual-bf16", tmp_path / "out")
    assert {value.dtype for value in read_all(tmp_path / "out").values()} == {torch.float32}
