"""Whether two config.json describe models that compute alike, by their effective values.

What a file leaves unstated is the default of its configuration class, so files written by
different versions of transformers are compared as the class reads them: `rope_theta`,
`rope_scaling` and `rope_parameters`, aliases such as `n_embd`, a nested `text_config`. Files that
differ in nothing that is compared need no class, and importing transformers takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from pydantic import JsonValue

__all__ = ["Config", "Difference", "differences"]

Config = Mapping[str, JsonValue]

_COMPARED = (
    "model_type",
    "tie_word_embeddings",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "num_experts_per_tok",
    "norm_topk_prob",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_parallel_residual",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "logit_scale",
)
"""Fields that decide what the weights mean, by the names of the classes' attributes. Rotary
*scaling* is left out on purpose: Llama 3 and 3.1 differ in it and their residuals fit each other
(portability); the merged model keeps its target's."""
_ROTARY = ("rope_theta", "partial_rotary_factor")
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "rope_theta": ("rotary_emb_base", "rope_local_base_freq"),
    "partial_rotary_factor": ("rotary_pct",),
}
"""What files call a field otherwise, for messages that say which value is a default."""
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_bias",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "is_llama_config",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "pad_token_id",
        "pretraining_tp",
        "sliding_window",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_version",
        "use_cache",
        "use_mrope",
        "use_sliding_window",
        "vocab_size",
    }
)
"""Fields that no class makes a compared value of; the tensors themselves show the size of the
vocabulary and which layers have a bias."""


class Difference(NamedTuple):
    """A field whose effective values differ, as text; an unstated one says where it comes from."""

    field: str
    left: str
    right: str


def differences(left: Config, right: Config, *, roles: tuple[str, str]) -> list[Difference]:
    """What keeps weights of two models from being added, as far as config.json says it; `roles`
    name the models. Raises CompatibilityError for a file that its class refuses."""
    if _relevant(left) == _relevant(right):
        return []
    one, other = _effective(left, roles[0]), _effective(right, roles[1])
    if one is None or other is None:
        one, other = _stated(left), _stated(right)
    return [
        Difference(field, _text(left, field, one), _text(right, field, other))
        for field in dict.fromkeys((*one, *other))
        if one.get(field) != other.get(field)
    ]


def _relevant(fields: Config) -> dict[str, object]:
    return {
        name: _relevant(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _IRRELEVANT
    }


def _stated(fields: Config) -> dict[str, object]:
    return {name: fields.get(name) for name in (*_COMPARED, *_ROTARY)}


def _effective(fields: Config, role: str) -> dict[str, object] | None:
    """The compared fields with the class's defaults; None for a class that is not known."""
    from cpt_residual.modeling.loading import config_of_fields

    whole = config_of_fields(fields, role=role)
    if whole is None:
        return None
    text = whole.get_text_config(decoder=True)
    found: dict[str, object] = {name: getattr(text, name, None) for name in _COMPARED}
    found["tie_word_embeddings"] = getattr(whole, "tie_word_embeddings", None)
    heads, width = found["num_attention_heads"], found["hidden_size"]
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = heads
    if found["head_dim"] is None and isinstance(heads, int) and isinstance(width, int):
        found["head_dim"] = width // max(heads, 1)
    return found | _rotary(getattr(text, "rope_parameters", None))


def _rotary(parameters: object) -> dict[str, object]:
    """Of all layers, or of each kind of layer where they differ (Gemma 3)."""
    if not isinstance(parameters, dict):
        return {}
    fields = cast("dict[str, object]", parameters)
    if not any(isinstance(value, dict) for value in fields.values()):
        return {name: fields[name] for name in _ROTARY if name in fields}
    return {
        f"{name} of {kind}": value
        for kind, inner in fields.items()
        for name, value in _rotary(inner).items()
    }


def _text(fields: Config, name: str, values: Mapping[str, object]) -> str:
    field, value = name.partition(" of ")[0], values.get(name)
    stated = not _keys(fields).isdisjoint((field, *_ALIASES.get(field, ())))
    return str(value) if stated or value is None else f"{value} (unstated)"


def _keys(fields: Config) -> set[str]:
    """At any depth."""
    inner = (_keys(value) for value in fields.values() if isinstance(value, dict))
    return set(fields).union(*inner)
