"""config.json is compared by effective values: unstated is the class's default."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from itertools import combinations
from typing import Any, cast

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling import effective_config
from cpt_residual.modeling.effective_config import Config, Difference, differences
from support.hub_releases import RELEASES, config_of

ROLES = ("base", "target")


def compared(left: object, right: object) -> list[Difference]:
    return differences(cast("Config", left), cast("Config", right), roles=ROLES)


def saved_today(fields: dict[str, object]) -> dict[str, Any]:
    """As the installed transformers writes the same configuration."""
    config = cast("Any", CONFIG_MAPPING[str(fields["model_type"])]).from_dict(deepcopy(fields))
    return json.loads(config.to_json_string())


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_a_release_is_the_same_model_as_its_descendant_and_its_instruct(name: str) -> None:
    base = config_of(name)
    assert compared(base, saved_today(base)) == []
    assert compared(config_of(name, "instruct"), saved_today(base)) == []
    assert compared(base, config_of(name, "instruct")) == []


@pytest.mark.parametrize("name", sorted(set(RELEASES) - {"gpt2", "gptj", "bloom"}))
def test_other_rotary_frequencies_are_another_model_in_every_spelling(name: str) -> None:
    """Also where the release does not state its theta: 10,000 against another value."""
    base = config_of(name)
    other = saved_today(base)
    rope = other.get("text_config", other)["rope_parameters"]
    for parameters in rope.values() if "rope_theta" not in rope else [rope]:
        parameters["rope_theta"] = 123_456.0
    found = compared(base, other)
    assert found
    assert all(field.startswith("rope_theta") for field, _, _ in found), found
    assert all(right == "123456.0" for _, _, right in found)


def test_a_default_is_named_as_one() -> None:
    base = config_of("llama2")
    (found,) = compared(base, {**base, "rope_theta": 500_000.0})
    assert found == ("rope_theta", "10000.0 (unstated)", "500000.0")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n_embd": 64}, "hidden_size"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    ],
)
def test_the_names_and_defaults_of_another_class(changes: dict[str, object], field: str) -> None:
    base = config_of("gpt2")
    assert field in [found.field for found in compared(base, {**base, **changes})]


def test_a_value_under_another_name_is_not_called_a_default() -> None:
    base = config_of("gpt2")
    found = compared(base, {**base, "n_embd": 64})
    assert ("hidden_size", "32", "64") in found


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("pythia", {"rotary_emb_base": 5000}, "rope_theta"),
        ("pythia", {"rotary_pct": 1.0}, "partial_rotary_factor"),
        ("pythia", {"use_parallel_residual": False}, "use_parallel_residual"),
        ("gemma3", {"rope_local_base_freq": 500}, "rope_theta of sliding_attention"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ("mistral", {"head_dim": 16}, "head_dim"),
        ("llama1", {"num_key_value_heads": 2}, "num_key_value_heads"),
    ],
)
def test_what_decides_the_meaning_of_weights(
    name: str, changes: dict[str, object], field: str
) -> None:
    base = config_of(name)
    assert [found.field for found in compared(base, {**base, **changes})] == [field]


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 288,
}


@pytest.mark.parametrize(
    ("model_type", "changes", "fields"),
    [
        ("smollm3", {"no_rope_layers": [1, 1]}, {"no_rope_layers"}),
        ("smollm3", {"no_rope_layer_interval": 1}, {"no_rope_layers", "no_rope_layer_interval"}),
        (
            "qwen2",
            {"layer_types": ["sliding_attention", "full_attention"]},
            {"layer_types"},
        ),
        (
            "qwen2",
            {"max_window_layers": 1, "sliding_window": 8, "use_sliding_window": True},
            {"layer_types"},
        ),
        ("falcon", {"alibi": True}, {"alibi"}),
        ("olmo", {"clip_qkv": 8.0}, {"clip_qkv"}),
        ("deepseek_v3", {"routed_scaling_factor": 1.0}, {"routed_scaling_factor"}),
        ("deepseek_v3", {"n_group": 4}, {"n_group"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx"}),
        ("gpt_neox", {"hidden_act": "relu"}, {"hidden_act"}),
    ],
)
def test_every_field_of_a_class_that_decides_is_compared(
    model_type: str, changes: dict[str, object], fields: set[str]
) -> None:
    base = {"model_type": model_type, **SMALL}
    if model_type == "smollm3":
        base["no_rope_layers"] = [1, 0]
    if "no_rope_layer_interval" in changes:
        base.pop("no_rope_layers")
    assert {found.field for found in compared(base, {**base, **changes})} == fields


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}),
        ("gemma", {"hidden_activation": None}),
        ("llama", {"partial_rotary_factor": 1.0}),
        ("gpt2", {"attn_pdrop": 0.0, "summary_type": "last", "reorder_and_upcast_attn": True}),
        ("mixtral", {"router_aux_loss_coef": 0.5, "router_jitter_noise": 0.1}),
        ("qwen2", {"max_window_layers": 1, "sliding_window": 8, "use_sliding_window": False}),
        ("llama", {"num_experts_per_tok": 3}),
    ],
)
def test_what_a_class_does_not_read_or_only_training_reads_may_differ(
    model_type: str, changes: dict[str, object]
) -> None:
    base = {"model_type": model_type, **SMALL}
    assert compared(base, {**base, **changes}) == []


SPELLED: list[dict[str, object]] = [
    {},
    {"head_dim": 8},
    {"head_dim": None},
    {"head_dim": 16},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": None},
    {"num_key_value_heads": 2},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": True},
    {"rope_theta": 10000},
    {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}, "rope_theta": 10000.0},
    {"rope_scaling": {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5000.0},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 1.0},
    {"layer_types": ["full_attention", "full_attention"]},
    {"layer_types": ["sliding_attention", "full_attention"]},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1},
]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_known_defaults_are_those_of_the_class(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every spelling against every other: with the table and by asking the class."""
    refused = {"mistral": {"num_key_value_heads": None}}.get(model_type)
    spellings = [spelled for spelled in SPELLED if spelled != refused]
    configs = [{"model_type": model_type, **SMALL, **spelled} for spelled in spellings]
    pairs = list(combinations(configs, 2))
    quick = [compared(*pair) for pair in pairs]
    monkeypatch.setattr(effective_config, "_relevant", lambda _: object())
    for pair, found in zip(pairs, quick, strict=True):
        assert found == compared(*pair), pair
    assert sum(not found for found in quick) > 20


@pytest.mark.parametrize(
    "scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}]
)
def test_rotary_scaling_may_differ_and_hides_no_theta(scaling: dict[str, object]) -> None:
    base = config_of("llama3")
    assert compared(base, {**base, "rope_scaling": scaling}) == []
    other = {**base, "rope_scaling": scaling, "rope_theta": 10_000.0}
    assert [found.field for found in compared(base, other)] == ["rope_theta"]
    assert compared(config_of("llama3"), config_of("llama31")) == []


def test_the_text_part_of_a_conditional_model_is_compared() -> None:
    base = config_of("gemma3_conditional")
    text = cast("dict[str, object]", base["text_config"])
    (found,) = compared(base, {**base, "text_config": {**text, "head_dim": 16}})
    assert found == ("head_dim", "8", "16")


def test_an_unknown_class_has_no_defaults() -> None:
    base = {"model_type": "nobody-knows", "hidden_size": 8}
    assert compared(base, {**base, "torch_dtype": "bfloat16"}) == []
    (found,) = compared(base, {**base, "rope_theta": 1.0})
    assert found == ("rope_theta", "None", "1.0")


def test_a_config_that_its_class_refuses_is_one_line_that_names_the_model() -> None:
    base = config_of("llama3")
    with pytest.raises(CompatibilityError, match=r"^target: config\.json does not load") as raised:
        compared(base, {**base, "hidden_size": "much"})
    assert "hidden_size" in raised.value.problems[0]


@pytest.mark.parametrize("name", ["llama3", "llama32", "smollm2", "qwen2", "qwen25", "qwen3"])
def test_texts_that_agree_need_no_class(name: str) -> None:
    """A merge of a plain family must start without importing transformers."""
    assert_no_class_is_asked(config_of(name), config_of(name, "instruct"))


@pytest.mark.parametrize("name", ["llama1", "llama2", "llama3", "llama31", "mistral", "qwen25"])
def test_a_model_that_was_saved_again_needs_no_class(name: str) -> None:
    """As most targets are: by today's transformers, which states what the release does not."""
    assert_no_class_is_asked(config_of(name), saved_today(config_of(name)))


def assert_no_class_is_asked(left: object, right: object) -> None:
    code = (
        "import json, sys; from cpt_residual.modeling.effective_config import differences;"
        "left, right = json.loads(sys.stdin.read());"
        "assert differences(left, right, roles=('a', 'b')) == [];"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    texts = json.dumps([left, right])
    subprocess.run([sys.executable, "-c", code], input=texts, text=True, check=True)
