"""Weights of kinds that are not read: each refused in words that name the kind and the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.weights.analysis.inspection import inspect
from cpt_residual.weights.io.checkpoint import open_checkpoint
from support.pico_family import Tensors, fake_model, raw_shard

SIZES = {"I64": 8, "F64": 8, "I32": 4, "BF16": 2, "F16": 2}
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}
INT8 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
NF4 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
MATRIX = "model.layers.0.mlp.up_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj_"


def stored(
    folder: Path, tensors: Tensors, dtypes: dict[str, str], config: Mapping[str, object]
) -> Path:
    """A model directory whose file holds tensors of these dtypes beside a plain one."""
    made = fake_model(folder, tensors, config=config)
    header: dict[str, object] = {}
    at = 0
    for name, dtype in {"model.norm.weight": "BF16", **dtypes}.items():
        size = 4 * SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": [4], "data_offsets": [at, at + size]}
        at += size
    raw_shard(made / "model.safetensors", header, b"\0" * at)
    return made


@pytest.mark.parametrize(
    ("dtypes", "config", "said"),
    [
        ({MATRIX: "F8_E4M3"}, FP8, ["(fp8, F8_E4M3)", "FineGrainedFP8Config(dequantize=True)"]),
        ({MATRIX: "F8_E5M2"}, {}, ["(fp8, F8_E5M2)", "FineGrainedFP8Config"]),
        ({"q_proj.qweight": "I32"}, GPTQ, ["(gptq 4-bit)", "q_proj.qweight: I32", ".dequantize()"]),
        ({"q_proj.qweight": "I32"}, AWQ, ["(awq 4-bit)", ".dequantize()"]),
        ({"q_proj.qweight": "I32"}, {}, ["(gptq or awq)"]),
        ({MATRIX: "I8", "q_proj.SCB": "F32"}, INT8, ["(bitsandbytes 8-bit)", ".dequantize()"]),
        ({MATRIX: "U8", f"{MATRIX}.absmax": "U8"}, NF4, ["(bitsandbytes 4-bit)"]),
        ({MATRIX: "U8", f"{MATRIX}.absmax": "U8"}, {}, ["(bitsandbytes 4-bit)"]),
        ({f"{EXPERTS}blocks": "U8"}, MXFP4, ["(mxfp4)", "Mxfp4Config(dequantize=True)"]),
        ({f"{EXPERTS}blocks": "U8"}, {}, ["(mxfp4)"]),
        ({MATRIX: "F64"}, {}, ["in double precision (F64)", 'dtype="float32"']),
        ({MATRIX: "I16"}, {}, ["tensors of I16, which are no weights"]),
    ],
)
def test_what_the_weights_are_and_what_to_do(
    tmp_path: Path,
    tensors: Tensors,
    dtypes: dict[str, str],
    config: dict[str, object],
    said: list[str],
) -> None:
    folder = stored(tmp_path / "m", tensors, dtypes, config)
    with pytest.raises(CompatibilityError) as caught:
        open_checkpoint(folder, role="instruct")
    text = str(caught.value)
    assert text.startswith("instruct: ")
    assert str(folder) in text
    assert "Download" not in text
    assert "trusted" not in text
    for words in said:
        assert words in text


def test_many_tensors_are_counted_not_listed(tmp_path: Path, tensors: Tensors) -> None:
    many = {f"model.layers.{n}.mlp.up_proj.weight": "F8_E4M3" for n in range(1200)}
    with pytest.raises(CompatibilityError) as caught:
        open_checkpoint(stored(tmp_path / "m", tensors, many, FP8), role="base")
    assert len(caught.value.problems) == 4
    assert caught.value.problems[-1] == "and 1,197 more (F8_E4M3)"


@pytest.mark.parametrize("dtype", ["BOOL", "U8", "I64"])
def test_masks_do_not_hide_that_a_file_is_cut(tmp_path: Path, tensors: Tensors, dtype: str) -> None:
    folder = stored(tmp_path / "m", tensors, {"gpt_neox.layers.0.attention.bias": dtype}, {})
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError) as caught:
        open_checkpoint(folder, role="base")
    assert [line for line in caught.value.problems if "is truncated" in line]
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "a.safetensors", "b": "b.st"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    (folder / "a.safetensors").write_bytes(whole)
    with pytest.raises(ArtifactError) as caught:
        open_checkpoint(folder, role="base")
    assert "b.st: the file is missing" in caught.value.problems


def test_what_else_is_wrong_with_quantised_files_is_said(tmp_path: Path, tensors: Tensors) -> None:
    folder = stored(tmp_path / "m", tensors, {"q_proj.qweight": "I32"}, GPTQ)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "b": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompatibilityError, match=r"quantised \(gptq 4-bit\)") as caught:
        open_checkpoint(folder, role="base")
    assert caught.value.problems == ("q_proj.qweight: I32", "b.safetensors: the file is missing")


@pytest.mark.parametrize("part", ["text_config", "thinker_config"])
def test_a_quantisation_section_of_a_part(tmp_path: Path, tensors: Tensors, part: str) -> None:
    nested = {part: {**FP8, "model_type": "llama"}}
    folder = fake_model(tmp_path / "m", tensors, config=nested)
    with pytest.raises(CompatibilityError, match=r"says quantised \(fp8\)") as caught:
        open_checkpoint(folder, role="base")
    assert caught.value.problems[0].startswith(f"{part}.quantization_config: ")


def test_what_config_json_says_of_quantising_can_be_looked_at(
    tmp_path: Path, tensors: Tensors
) -> None:
    found = inspect(fake_model(tmp_path / "m", tensors, config=FP8))
    assert found.facts == {"config_says_quantised": "fp8"}
    assert found.dtypes == {"BF16": len(tensors)}
    assert inspect(fake_model(tmp_path / "plain", tensors)).facts == {}
    quantised = stored(tmp_path / "q", tensors, {MATRIX: "U8", f"{MATRIX}.absmax": "U8"}, NF4)
    with pytest.raises(CompatibilityError, match="are quantised"):
        inspect(quantised)


def test_a_quantisation_section_over_plain_tensors(tmp_path: Path, tensors: Tensors) -> None:
    folder = fake_model(tmp_path / "m", tensors, config=FP8)
    with pytest.raises(CompatibilityError, match=r"says quantised \(fp8\), its weights are not"):
        open_checkpoint(folder, role="base")
    nothing: tuple[dict[str, object] | None, ...] = (None, {})
    for empty in nothing:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**fields, "quantization_config": empty}))
        assert len(open_checkpoint(folder, role="base").tensors) == len(tensors)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": None, "num_hidden_layers": "2"}, "num_hidden_layers: Input should be"),
        ({"hidden_size": [32]}, "hidden_size: Input should be a valid integer"),
        ({"num_attention_heads": -4}, "num_attention_heads: Input should be greater than 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: Input should be less than"),
        ({"rope_theta": float("nan")}, "NaN is not a number of JSON"),
        ({"rope_theta": 10**400}, "rope_theta: Input should be a valid number"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings: Input should be a valid boolean"),
        ({"model_type": None}, "model_type: Input should be a valid string"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta: Input should be a valid number"),
        ({"a": "\ud800"}, "can't encode character"),
    ],
)
def test_config_json_with_values_of_other_kinds(
    tmp_path: Path, tensors: Tensors, config: dict[str, object], said: str
) -> None:
    folder = fake_model(tmp_path / "m", tensors, config=config)
    with pytest.raises(ArtifactError) as caught:
        open_checkpoint(folder, role="base")
    assert said in str(caught.value)
    assert "config.json" in caught.value.what


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": 1e999}', b'{"a": -Infinity}', b"\xff{}"])
def test_json_that_python_reads_and_nobody_else(
    tmp_path: Path, tensors: Tensors, raw: bytes
) -> None:
    folder = fake_model(tmp_path / "m", tensors)
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        open_checkpoint(folder, role="base")


def test_no_metadata_is_none(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    folder = fake_model(tmp_path / "m", {"a": torch.zeros(1)})
    raw_shard(folder / "model.safetensors", {"__metadata__": None, **header}, b"\0" * 4)
    assert list(open_checkpoint(folder, role="base").tensors) == ["a"]
    raw_shard(folder / "model.safetensors", {"__metadata__": {"format": 1}, **header}, b"\0" * 4)
    with pytest.raises(ArtifactError, match="__metadata__: not texts by name"):
        open_checkpoint(folder, role="base")
