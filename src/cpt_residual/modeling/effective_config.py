"""Whether two config.json describe models that compute alike, by their effective values.

What a file leaves unstated is the default of its configuration class, so files written by
different versions of transformers are compared as the class reads them: `rope_theta`,
`rope_scaling` and `rope_parameters`, aliases such as `n_embd`, a nested `text_config`. Files that
differ in nothing that is compared need no class, and importing transformers takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, cast

from pydantic import JsonValue

Config = Mapping[str, JsonValue]

_IGNORED = re.compile(
    r".*(?:_token_ids?|_token_index|dropout\w*|pdrop|layerdrop|_drop|jitter\w*|_loss\w*|cache_\w+)"
    r"|_name_or_path|architectures|auto_map|tokenizer_class|torch_dtype|dtype|use_cache|use_mrope"
    r"|\w+_version|transformers\.js_config|is_llama_config|task_specific_params|summary_\w+"
    r"|classifier_\w+|is_decoder|add_cross_attention|pretraining_tp|gradient_checkpointing"
    r"|init_\w+|\w*_init|\w*initializer\w*|\w*vocab_size\w*|attention_bias|mlp_bias"
    r"|(?:original_)?max_position_embeddings|max_sequence_length|seq_length|n_positions|n_ctx"
    r"|max_window_layers|(?:use_)?sliding_window|rope_parameters|rope_scaling"
    r"|output_router_logits|num_logits_to_keep|num_mtp_layers|mtp_\w+"
    r"|use_mamba_kernels|use_mambapy|use_associative_scan|(?:mamba_)?chunk_size"
    r"|\w+_fusion|reorder_and_upcast_attn|\w*softmax_in_fp32"
)
"""Fields that do not change what the weights mean: names and ids, what holds in training only,
numerics, lengths, and what the tensors themselves show (the vocabulary, which layers have a bias).
Rotary *scaling* is left out on purpose: Llama 3 and 3.1 differ in it and their residuals fit each
other (portability); the merged model keeps its target's. Which layers have a sliding window is in
`layer_types`."""
_WINDOWS = ("max_window_layers", "sliding_window", "use_sliding_window")
_ROTARY = ("rope_theta", "partial_rotary_factor")
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "rope_theta": ("rotary_emb_base", "rope_local_base_freq"),
    "partial_rotary_factor": ("rotary_pct",),
}
"""What files call a field otherwise, for messages that say which value is a default."""
_PLAIN = frozenset({"llama", "mistral", "qwen2"})
"""Values of `model_type` whose usual defaults are known here, see `_with_defaults`."""


class Difference(NamedTuple):
    """A field whose effective values differ, as text; an unstated one says where it comes from."""

    field: str
    left: str
    right: str


def differences(left: Config, right: Config, *, roles: tuple[str, str]) -> list[Difference]:
    """What keeps weights of two models from being added, as far as config.json says it; `roles`
    name the models. Raises CompatibilityError for a file that its class refuses."""
    if _relevant(_with_defaults(left)) == _relevant(_with_defaults(right)):
        return []
    one, other = _effective(left, roles[0]), _effective(right, roles[1])
    if one is None or other is None:
        one, other = _stated(left, right), _stated(right, left)
    same_class = one["model_type"] == other["model_type"]
    return [
        Difference(field, _text(left, field, one), _text(right, field, other))
        for field in dict.fromkeys((*one, *other))
        if one.get(field) != other.get(field) and (same_class or (field in one and field in other))
    ]


def _with_defaults(fields: Config) -> Config:
    """`fields` with the defaults that files of plain classes most often leave out, so that these
    classes need not be asked. Rotary parameters that say more are left as they are."""
    rope, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if fields.get("model_type") not in _PLAIN or not (
        isinstance(rope, dict)
        and isinstance(scaling, dict)
        and isinstance(width, int)
        and isinstance(heads, int)
        and heads > 0
        and not any(isinstance(value, dict) for value in rope.values())
        and scaling.keys().isdisjoint(_ROTARY)
        and fields.keys().isdisjoint(rope)
    ):
        return fields
    known: dict[str, JsonValue] = {
        "head_dim": width // heads,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "tie_word_embeddings": False,
    }
    if fields["model_type"] == "llama":
        known["num_key_value_heads"] = heads
    layers = fields.get("num_hidden_layers")
    if fields["model_type"] == "qwen2" and not _has_windows(fields) and isinstance(layers, int):
        full: list[JsonValue] = ["full_attention"]
        known["layer_types"] = full * layers
    stated = {name: value for name, value in fields.items() if value is not None}
    rotary = {name: rope[name] for name in _ROTARY if name in rope}
    kept = {name: None for name in fields if name not in known}
    return {**kept, **known, **stated, **rotary, "rope_parameters": None, "rope_scaling": None}


def _relevant(fields: Config) -> dict[str, object]:
    """What can differ in effect. Rotary parameters and windows are ignored as such only, because
    values that are compared follow from them."""
    follow = ("rope_parameters", "rope_scaling", *(_WINDOWS if _has_windows(fields) else ()))
    return {
        name: _relevant(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name in follow or not _IGNORED.fullmatch(name)
    }


def _has_windows(fields: Config) -> bool:
    return bool(fields.get("use_sliding_window"))


def _stated(fields: Config, other: Config) -> dict[str, object]:
    """Of a class that is not known: what both files state, and what matters most."""
    names = ("model_type", "tie_word_embeddings", *_ROTARY, *sorted(fields.keys() & other.keys()))
    values = _relevant(fields)
    return {name: values.get(name) for name in names if not _IGNORED.fullmatch(name)}


def _effective(fields: Config, role: str) -> dict[str, object] | None:
    """All fields that the class declares and that are compared, by the names of its attributes,
    with its defaults; None for a class that is not known."""
    from cpt_residual.modeling.loading import config_of_fields, declared_fields

    whole = config_of_fields(fields, role=role)
    if whole is None:
        return None
    text = whole.get_text_config(decoder=True)
    found: dict[str, object] = {"model_type": text.model_type}
    for field, value in declared_fields(text).items():
        if not _IGNORED.fullmatch(field):
            found[field] = list(cast("tuple[object]", value)) if isinstance(value, tuple) else value
    found["tie_word_embeddings"] = getattr(whole, "tie_word_embeddings", None)
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if found.get("num_key_value_heads", heads) is None:
        found["num_key_value_heads"] = heads
    found["head_dim"] = getattr(text, "head_dim", None)  # read where it is not declared (Qwen 2)
    if found["head_dim"] is None and isinstance(heads, int) and isinstance(width, int):
        found["head_dim"] = width // max(heads, 1)
    return found | _rotary(getattr(text, "rope_parameters", None))


def _rotary(parameters: object) -> dict[str, object]:
    """Of all layers, or of each kind of layer where they differ (Gemma 3)."""
    if not isinstance(parameters, dict):
        return {}
    fields = cast("dict[str, object]", parameters)
    if "rope_theta" in fields or not any(isinstance(value, dict) for value in fields.values()):
        found = {name: fields[name] for name in _ROTARY if name in fields}
        return {"partial_rotary_factor": 1.0, **found} if fields else {}
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
