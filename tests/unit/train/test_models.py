"""Model directories: made, loaded, written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cpt_residual.config.derived import num_parameters
from cpt_residual.config.schema import Architecture
from cpt_residual.errors import ArtifactError, WorkerError
from cpt_residual.modeling.chat import chat_template_of
from cpt_residual.modeling.loading import build_on_meta, load_config
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.train.stored import open_start, stored_dtype, verify_weights
from support.training import PICO, write_model

QWEN = PICO.model_copy(update={"model_type": "qwen2", "tie_word_embeddings": False})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.mark.parametrize("architecture", [PICO, QWEN], ids=["llama", "qwen2"])
def test_an_initial_model_loads_and_has_the_size_the_plan_says(
    tmp_path: Path, architecture: Architecture
) -> None:
    write_model(tmp_path / "model", architecture=architecture)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert net.config.model_type == architecture.model_type
    assert sum(p.numel() for p in net.parameters()) == num_parameters(architecture)
    meta = build_on_meta(load_config(tmp_path / "model"))
    assert sum(p.numel() for p in meta.parameters()) == num_parameters(architecture)


def test_the_seed_decides_the_weights_and_only_them(model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    same = write_model(tmp_path / "same", seed=0)
    other = write_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        name = path.relative_to(model)
        assert (same / name).read_bytes() == path.read_bytes(), name
        is_weights = path.suffix == ".safetensors"
        assert ((other / name).read_bytes() != path.read_bytes()) == is_weights, name


def test_a_base_model_stops_at_documents_and_carries_its_chat_side(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.chat_template is None
    assert "<|assistant|>" in chat_template_of(model)
    end, document_end = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    base = json.loads((model / "generation_config.json").read_text())
    chat = json.loads((model / "chat" / "generation_config.json").read_text())
    assert base["eos_token_id"] == document_end
    assert chat["eos_token_id"] == [end, document_end]
    assert len(token_map_hash(tokenizer)) == 64


def test_weights_are_readable_by_others(model: Path) -> None:
    assert (model / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_start_model_of_several_shards(model: Path, tmp_path: Path) -> None:
    whole = load_file(model / "model.safetensors")
    names = sorted(whole)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: whole[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    start = open_start(tmp_path)
    assert sorted(start.tensors) == names
    assert stored_dtype(tmp_path) == torch.float32
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model-2\.safetensors"):
        stored_dtype(tmp_path)


def test_weights_that_were_not_written_whole_are_all_named(model: Path) -> None:
    shapes = {name: entry.shape for name, entry in open_start(model).tensors.items()}
    verify_weights(model, shapes, torch.float32)
    wanted = shapes | {"model.norm.weight": (31,), "model.more.weight": (2,)}
    with pytest.raises(WorkerError) as caught:
        verify_weights(model, wanted, torch.float32)
    assert caught.value.problems == (
        "model.more.weight: missing",
        "model.norm.weight: shape (32,), wanted (31,)",
    )
    with pytest.raises(WorkerError, match=r"torch\.float32, wanted torch\.bfloat16"):
        verify_weights(model, shapes, torch.bfloat16)


def test_a_model_without_weights_was_not_written_whole(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(WorkerError, match="not written whole") as caught:
        verify_weights(tmp_path, {"a": (1,)}, torch.float32)
    assert "holds no weights" in caught.value.problems[0]
