from __future__ import annotations

import pytest

from cpt_residual.weights.maths.naming import MODULE_CLASSES, layer_of, module_of


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("model.embed_tokens.weight", "embeddings", None),
        ("transformer.wte.weight", "embeddings", None),
        ("lm_head.weight", "head", None),
        ("model.norm.weight", "norm", None),
        ("transformer.h.3.ln_1.bias", "norm", 3),
        ("model.layers.11.self_attn.q_norm.weight", "norm", 11),
        ("model.layers.0.self_attn.q_proj.weight", "attention", 0),
        ("model.layers.7.mlp.up_proj.weight", "mlp", 7),
        ("model.blocks.2.rotary.inv_freq", "other", 2),
    ],
)
def test_names_say_module_class_and_layer(name: str, module: str, layer: int | None) -> None:
    assert module_of(name, {}) == module
    assert module in MODULE_CLASSES
    assert layer_of(name) == layer
