"""Every family that is released on the hub can be trained, and its operations are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.loading import build_on_meta, config_of_fields
from cpt_residual.train.preflight import (
    check_trainable,
    count_training_flops,
    keeps_documents_apart,
    require_documents_apart,
)
from cpt_residual.train.worker import run
from cpt_residual.weights.io.checkpoint import open_checkpoint
from support.hub_family import write_hub_family
from support.hub_releases import RELEASES, config_of
from support.training import LENGTH, job, write_pack

ROWS, WIDTH, LAYERS = 8, 32, 2


def flops(name: str, **changes: object) -> int:
    config = config_of_fields({**config_of(name), **changes}, role=name)
    assert config is not None
    return count_training_flops(
        build_on_meta(config), num_rows=ROWS, rows=2, sequence_length=LENGTH
    )


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_operations_are_counted_without_values(name: str) -> None:
    """Between twice and eight times the matrices' elements, forward, for every token."""
    assert 1e7 < flops(name) < 4e7


@pytest.mark.parametrize(
    ("name", "num_experts", "width"),
    [
        ("mixtral", "num_local_experts", 64),
        ("qwen2_moe", "num_experts", 16),
        ("qwen3_moe", "num_experts", 16),
    ],
)
def test_only_experts_that_a_token_is_sent_to_are_counted(
    name: str, num_experts: str, width: int
) -> None:
    """Twice as many experts cost what the larger router costs; one more for each token costs its
    three matrices. Backward is twice forward, multiply and add are two operations."""
    start, per_element = flops(name), 3 * 2 * ROWS * LENGTH * LAYERS
    assert flops(name, **{num_experts: 8}) - start == 4 * WIDTH * per_element
    assert flops(name, num_experts_per_tok=3) - start == 3 * WIDTH * width * per_element


def leaks(config: PreTrainedConfig) -> bool:
    """Whether a document's logits change with the document before it in the row."""
    kind = cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]
    attention = "sdpa" if kind._supports_sdpa else "eager"
    torch.manual_seed(0)
    model = cast("Any", AutoModelForCausalLM).from_config(config, attn_implementation=attention)
    model = model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        ids = torch.randint(5, 200, (2, 16))
        ids[1, 9:] = ids[0, 9:]
        positions = torch.cat([torch.arange(9), torch.arange(7)]).expand(2, 16)
        one, other = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 9:]
    return float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_it_is_known_which_classes_keep_documents_apart(name: str) -> None:
    config = config_of_fields(config_of(name), role=name)
    assert config is not None
    assert keeps_documents_apart(build_on_meta(config)) == (not leaks(config))


SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "vocab_size": 288,
}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
}
MOE = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 16,
}
HYBRIDS: dict[str, dict[str, object]] = {
    "bamba": {**SSM, "attn_layer_indices": [1]},
    "falcon_h1": {**SSM, "head_dim": 8, "mamba_d_ssm": 64},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "minimax": {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {
        **LINEAR,
        **MOE,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {"head_dim": 8},
}
"""Classes whose attention looks at the positions, and whose other layers do not."""


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_a_hybrid_does_not_keep_documents_apart(name: str) -> None:
    config = config_of_fields({"model_type": name, **SIZES, **HYBRIDS[name]}, role=name)
    assert config is not None
    assert leaks(config)
    model = build_on_meta(config)
    assert not keeps_documents_apart(model)
    with pytest.raises(CompatibilityError, match="does not keep the documents") as raised:
        require_documents_apart(model)
    assert raised.value.problems[0].startswith("not all of its layers are attention")


@pytest.mark.parametrize("name", ["bamba", "lfm2", "qwen3_next"])
def test_a_class_whose_operations_cannot_be_counted_is_refused_before_the_pack(
    name: str, tmp_path: Path
) -> None:
    fields = {"model_type": name, **SIZES, **HYBRIDS[name]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CompatibilityError, match=r"operations of training .* cannot be counted"):
        check_trainable(tmp_path, LENGTH, packed=False)
    with pytest.raises(CompatibilityError, match="does not keep the documents of a packed row"):
        check_trainable(tmp_path, LENGTH, packed=True)


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_a_class_that_mixes_documents_is_not_trained_on_packed_rows(
    name: str, tmp_path: Path
) -> None:
    start = write_hub_family(tmp_path, name).target
    pack = write_pack(tmp_path / "pack", start, num_rows=16)
    with pytest.raises(CompatibilityError, match="does not keep the documents of a packed row"):
        run(job(tmp_path, start, pack), progress=lambda *_: None, metrics=None)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in {"mixtral", "gemma2", "pythia"} else pytest.mark.slow
        )
        for name in sorted(set(RELEASES) - {"bloom", "falcon"})
    ],
)
def test_a_family_trains(name: str, tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, name).target
    pack = write_pack(tmp_path / "pack", start, num_rows=16)
    training = job(tmp_path, start, pack, learning_rate=3e-2)
    reported: list[float] = []

    class Sink:
        def log(self, values: dict[str, float], *, tokens: int, step: int) -> None:
            del tokens, step
            reported.append(values["loss"])

    metrics = run(training, progress=lambda *_: None, metrics=Sink())
    assert min(reported[1:]) < reported[0]
    assert int(metrics["flops"]) > 0
    before, after = (open_checkpoint(path, role="m") for path in (start, training.out))
    assert {n: e.shape for n, e in before.tensors.items()} == {
        n: e.shape for n, e in after.tensors.items()
    }
