"""What compute and apply write, and what they refuse without touching their output."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cpt_residual.core import disk
from cpt_residual.core.hashing import file_sha256
from cpt_residual.errors import ArtifactError, CompatibilityError, DiskSpaceError
from cpt_residual.modeling.tokenizer import load_tokenizer, token_map_hash
from cpt_residual.weights import reader, writer
from cpt_residual.weights.checkpoint import read_shard
from cpt_residual.weights.delta import PairDelta, StoredDelta
from cpt_residual.weights.merge import MergeReport, Output, merge
from cpt_residual.weights.reader import DEFAULT_STREAMING, ShardReader, Streaming, map_in_order
from cpt_residual.weights.residual import compute
from cpt_residual.weights.residual_format import (
    CORRECTIONS_FILE,
    MANIFEST_FILE,
    ResidualManifest,
    open_residual,
    require_intact,
)
from cpt_residual.weights.tensors import tensor_of
from support.pico_family import Tensors, fake_model, opened, read_all, same_bits, write_weights


def moved(tensors: Tensors, scale: float, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(
            value.dtype
        )
        for name, value in tensors.items()
    }


def subtract(base: Path, instruct: Path, out: Path) -> ResidualManifest:
    return compute(opened(base, "base"), opened(instruct, "instruct"), out)


def add(
    target: Path,
    residual: Path,
    out: Path,
    alpha: float = 1.0,
    streaming: Streaming = DEFAULT_STREAMING,
) -> MergeReport:
    source = StoredDelta(open_residual(residual))
    (report,) = merge(opened(target), source, [Output(alpha, out)], streaming=streaming)
    return report


@pytest.fixture
def family(tmp_path: Path, tensors: Tensors) -> tuple[Path, Path, Path]:
    """base (one file), instruct (two shards), residual."""
    base = fake_model(tmp_path / "base", tensors)
    instruct = fake_model(tmp_path / "instruct", moved(tensors, 0.01), num_shards=2)
    subtract(base, instruct, tmp_path / "residual")
    return base, instruct, tmp_path / "residual"


def test_the_residual_directory(family: tuple[Path, Path, Path], tensors: Tensors) -> None:
    base, instruct, folder = family
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
    family: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, instruct, folder = family
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
    family: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors
) -> None:
    target = fake_model(tmp_path / "target", moved(tensors, 0.02, seed=5), num_shards=3)
    seen: list[tuple[int, int, str]] = []
    streaming = Streaming(progress=lambda *args: seen.append(args))
    report = add(target, family[2], tmp_path / "out", 0.5, streaming)
    assert seen[-1] == (108, 108, "parameters")
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (target / index).read_bytes()
    for shard in target.glob("*.safetensors"):
        assert read_shard(tmp_path / "out" / shard.name).header == read_shard(shard).header
        with safe_open(tmp_path / "out" / shard.name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    start, delta = read_all(target), read_all(family[2])
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
    stored = load_file(tmp_path / "residual" / CORRECTIONS_FILE)
    assert stored["index"].numel() == stored["value"].numel() == manifest.num_rounded
    add(folders[0], tmp_path / "residual", tmp_path / "out")
    for name, value in read_all(tmp_path / "out").items():
        assert same_bits(value, after[name])


# --- refusals ------------------------------------------------------------------------------------
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


def test_a_grown_vocabulary_says_what_is_needed(
    family: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors
) -> None:
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:2]])
    target = fake_model(tmp_path / "target", tensors)
    with pytest.raises(CompatibilityError) as caught:
        add(target, family[2], tmp_path / "out")
    text = str(caught.value)
    assert text.startswith("residual and target have the same tokens but not the same number of")
    assert "rows (8 vs 10)" in text
    assert "--vocab-policy common_tokens" in text
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:9]
    uneven = fake_model(tmp_path / "uneven", tensors)
    source = fake_model(tmp_path / "source", tensors)
    del tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.zeros(7, 4, dtype=torch.bfloat16)
    other = fake_model(tmp_path / "other", tensors)
    subtract(uneven, source, tmp_path / "fits")
    with pytest.raises(CompatibilityError, match="base does not fit instruct"):
        subtract(uneven, other, tmp_path / "r2")


def test_other_tokens_are_refused_although_shapes_agree(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    path = family[0] / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    first, second = [token for token in ids if ids[token] > 100][:2]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CompatibilityError, match="do not have the same tokens") as caught:
        add(family[0], family[2], tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert f"{ids[first]}: {second!r} vs {first!r}" in "\n".join(caught.value.problems)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CompatibilityError, match="do not have the same tokens"):
        subtract(family[0], family[1], tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["base", "instruct", "target"])
def test_values_that_are_not_finite(
    family: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors, where: str, value: float
) -> None:
    bad = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        bad[name][1, 2] = value
    broken = fake_model(tmp_path / "broken", bad)
    base, instruct, residual = family
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


def test_overflow_is_refused(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    start = {name: torch.full((2,), 3e38) for name in ("a", "b")}
    low = fake_model(tmp_path / "low", {name: -value for name, value in start.items()})
    high = fake_model(tmp_path / "high", start)
    with pytest.raises(CompatibilityError, match="a: instruct - base is larger than fp32 can hold"):
        subtract(low, high, tmp_path / "out")
    half = {name: torch.full((2,), 6e4, dtype=torch.float16) for name in ("a", "b")}
    zero = fake_model(tmp_path / "zero", {name: value * 0 for name, value in half.items()})
    top = fake_model(tmp_path / "top", half)
    subtract(zero, top, tmp_path / "top-residual")
    with pytest.raises(CompatibilityError, match=r"a: target \+ alpha \* residual is larger than"):
        add(top, tmp_path / "top-residual", tmp_path / "out")


def test_nan_in_a_stored_residual(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shard = next(iter(open_residual(family[2]).shards))
    with shard.path.open("r+b") as file:
        file.seek(shard.tensors[0].offset)
        file.write(np.float32("nan").tobytes())
    with pytest.raises(CompatibilityError, match="NaN or Inf in residual"):
        add(family[0], family[2], tmp_path / "out")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(
    family: tuple[Path, Path, Path], tmp_path: Path, alpha: float
) -> None:
    with pytest.raises(CompatibilityError, match="alpha is"):
        add(family[0], family[2], tmp_path / "out", alpha=alpha)


def test_nothing_is_overwritten(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, instruct, residual = family
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
    family: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10)
    with pytest.raises(DiskSpaceError, match="not enough disk space"):
        add(family[0], family[2], tmp_path / "out")
    monkeypatch.undo()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskSpaceError):
        subtract(family[0], family[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_systems_that_cannot_reserve(
    family: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    subtract(family[0], family[1], tmp_path / "out")
    assert read_all(tmp_path / "out").keys() == read_all(family[2]).keys()

    def broken(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output"):
        writer.ShardWriter(tmp_path / "file", header=b"", num_bytes=1)


def test_a_file_cut_while_it_is_read(family: tuple[Path, Path, Path]) -> None:
    checkpoint = opened(family[0])
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


def test_an_edited_residual(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(family[2], tmp_path / name))

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
    add(folders["fp32"], tmp_path / "residual-bf16", tmp_path / "out")
    assert {value.dtype for value in read_all(tmp_path / "out").values()} == {torch.float32}


def test_readers_share_nothing_between_blocks(tmp_path: Path, tensors: Tensors) -> None:
    write_weights(tmp_path, tensors)
    shard = read_shard(tmp_path / "model.safetensors")
    with ShardReader([shard]) as shards:
        for entry in shard.tensors:
            whole = tensors[entry.name].reshape(-1)
            for block in reader.blocks_of([entry], 5):
                part = shards.read(entry, block.start, block.stop)
                assert same_bits(tensor_of(part), whole[block.start : block.stop])


def test_a_damaged_residual_is_not_added(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    artifact = open_residual(family[2])
    shard = artifact.shards[0]
    with shard.path.open("r+b") as file:
        file.seek(shard.tensors[0].offset)
        file.write(np.float32(1e9).tobytes())
    with pytest.raises(ArtifactError, match=r"The residual is not what was written\n  alpha \* "):
        add(family[0], family[2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match=f"{shard.name}: sha256 .*, recorded "):
        require_intact(artifact, threads=2)
    again = subtract(family[0], family[1], tmp_path / "again")
    assert again.files == artifact.manifest.files


@pytest.mark.parametrize("role", ["base", "instruct"])
def test_the_model_with_nan_is_named_in_a_direct_merge(
    family: tuple[Path, Path, Path], tmp_path: Path, tensors: Tensors, role: str
) -> None:
    bad = {name: tensor.clone() for name, tensor in tensors.items()}
    bad["lm_head.weight"][1, 2] = torch.nan
    broken = opened(fake_model(tmp_path / "broken", bad), role)
    models = {"base": opened(family[0], "base"), "instruct": opened(family[1], "instruct")}
    source = PairDelta(**{**models, role: broken})
    with pytest.raises(CompatibilityError) as caught:
        merge(opened(family[0]), source, [Output(1.0, tmp_path / "out")])
    assert caught.value.problems == (f"lm_head.weight: NaN or Inf in {role}",)


def test_a_snapshot_of_the_hubs_cache(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(family[0].iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    add(snapshot, family[2], tmp_path / "out")
    add(family[0], family[2], tmp_path / "expected")
    for name, value in read_all(tmp_path / "expected").items():
        assert same_bits(read_all(tmp_path / "out")[name], value)
