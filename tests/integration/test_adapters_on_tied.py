"""Adapters of peft on a base that ties embedding and head, which peft trains apart."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpt_residual import api
from cpt_residual.weights.interop.adapter import merge_adapter
from support.hub_family import write_hub_family
from support.pico_family import opened, read_all, real_family, same_bits, write_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # peft's
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA_BOTH = ["embed_tokens", "lm_head"]
SAVED: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": LORA_BOTH},
}
LORA: dict[str, dict[str, Any]] = {
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA on both": {"target_modules": ["q_proj", *LORA_BOTH]},
    "LoRA on the head, embedding saved": {
        "target_modules": ["q_proj", "lm_head"],
        "modules_to_save": ["embed_tokens"],
    },
}
TYING: dict[str, dict[str, Any]] = {
    f"{name}, tying": {**config, "ensure_weight_tying": True}
    for name, config in (SAVED | dict(list(LORA.items())[:3])).items()
}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("family")
    return real_family(root, model_type="qwen2", tied=True, dtype=torch.float32)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def trained(base: Path, folder: Path, *, num_rows: int = 0, **config: Any) -> Any:
    """A LoRA with random values, saved in `folder`, as peft holds it."""
    peft = pytest.importorskip("peft")
    model = load(base)
    if num_rows:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **deepcopy(config)})
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted.eval()


def ties(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("config", [*SAVED.values(), *LORA.values()], ids=[*SAVED, *LORA])
def test_the_merged_model_computes_what_the_adapter_does(
    family: dict[str, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    """An untied model. peft's own merge is the same for modules_to_save; of a LoRA on a tied
    tensor it adds the factors to both."""
    adapted = trained(family["base"], tmp_path / "adapter", **config)
    expected = logits(adapted)
    merge_adapter(tmp_path / "adapter", opened(family["base"], "base"), tmp_path / "ours")
    assert not ties(tmp_path / "ours")
    assert torch.allclose(logits(load(tmp_path / "ours")), expected, atol=1e-4)

    theirs = adapted.merge_and_unload()
    theirs.save_pretrained(tmp_path / "theirs")
    if "modules_to_save" in config:
        assert not ties(tmp_path / "theirs")
        left, right = (read_all(tmp_path / name) for name in ("ours", "theirs"))
        assert left.keys() == right.keys()
        assert all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)
    else:
        assert not torch.allclose(logits(theirs), expected, atol=1e-2), "peft has fixed it"


@pytest.mark.parametrize("config", TYING.values(), ids=TYING)
def test_what_peft_ties_stays_tied(
    family: dict[str, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    expected = logits(trained(family["base"], tmp_path / "adapter", **config))
    merge_adapter(tmp_path / "adapter", opened(family["base"], "base"), tmp_path / "ours")
    assert ties(tmp_path / "ours")
    assert torch.allclose(logits(load(tmp_path / "ours")), expected, atol=1e-4)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("saved", [False, True])
def test_a_grown_vocabulary_and_a_head_apart(
    family: dict[str, Path], tmp_path: Path, saved: bool, num_shards: int
) -> None:
    base, num_rows = tmp_path / "base", 300
    load(family["base"]).save_pretrained(base)
    tensors = read_all(base)
    (base / "model.safetensors").unlink()
    write_weights(base, tensors, num_shards=num_shards)
    how = SAVED["head"] if saved else LORA["LoRA on the head"]
    expected = logits(trained(base, tmp_path / "adapter", num_rows=num_rows, **how))
    merge_adapter(tmp_path / "adapter", opened(base, "base"), tmp_path / "ours")
    merged = opened(tmp_path / "ours")
    assert merged.tensors[EMBEDDING].shape == merged.tensors[HEAD].shape
    assert merged.tensors[HEAD].shape[0] == num_rows
    assert torch.allclose(logits(load(tmp_path / "ours")), expected, atol=1e-4)
    if num_shards > 1:
        assert merged.index is not None
        found = json.loads(merged.index)
        assert found["weight_map"].keys() == merged.tensors.keys()
        total = sum(entry.num_bytes for entry in merged.tensors.values())
        assert found["metadata"]["total_size"] == total


def test_a_base_that_spells_its_tensors_otherwise(tmp_path: Path) -> None:
    """GPT-2's release has `wte.weight`; the head goes by the name of the class."""
    base = write_hub_family(tmp_path, "gpt2").base
    assert "wte.weight" in read_all(base)
    config: dict[str, Any] = {**SAVED["head"], "target_modules": ["c_attn"], "fan_in_fan_out": True}
    expected = logits(trained(base, tmp_path / "adapter", **config))
    merge_adapter(tmp_path / "adapter", opened(base, "base"), tmp_path / "ours")
    assert {HEAD, "wte.weight"} <= read_all(tmp_path / "ours").keys()
    assert torch.allclose(logits(load(tmp_path / "ours")), expected, atol=1e-4)


@pytest.mark.parametrize("config", [SAVED["head"], SAVED["both"], LORA["LoRA on the embedding"]])
def test_the_residual_of_the_tied_pair_moves_both(
    family: dict[str, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    """theta_target + alpha * residual in plain numpy over peft's own head and embedding; the
    output loads and stops."""
    adapted = trained(family["base"], tmp_path / "adapter", **config)
    pair = api.Pair(family["base"], family["instruct"])
    api.plan_apply(tmp_path / "adapter", pair, tmp_path / "out", alphas=[0.5])
    api.apply(tmp_path / "adapter", pair, tmp_path / "out", alphas=[0.5])
    merge_adapter(tmp_path / "adapter", opened(family["base"], "base"), tmp_path / "target")
    target = read_all(tmp_path / "target")
    if "modules_to_save" in config:
        theirs = adapted.merge_and_unload().state_dict()
        assert all(torch.allclose(theirs[name], value, atol=1e-6) for name, value in target.items())
    base, instruct = (read_all(family[name]) for name in ("base", "instruct"))
    merged = read_all(tmp_path / "out")
    assert merged.keys() == target.keys() == {*base, HEAD}
    for name, value in target.items():
        own = EMBEDDING if name == HEAD else name
        residual = instruct[own].double().numpy() - base[own].double().numpy()
        exact = value.double().numpy() + 0.5 * residual
        assert same_bits(merged[name], torch.from_numpy(np.asarray(exact)).float()), name
    record = json.loads((tmp_path / "out/merge.json").read_text())
    assert record["stops_at"]
    assert any(HEAD in note and EMBEDDING in note for note in record["notes"])
    assert any("stops" in check for check in api.verify_model(tmp_path / "out").checks)
