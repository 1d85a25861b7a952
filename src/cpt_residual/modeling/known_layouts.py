"""How the class of a checkpoint reads its tensors: from a table, or by asking the class.

Architectures with the layout of Llama are in a table, which a test compares with the classes
themselves; for all others, and for any name that the table does not expect, the class is built
without storage (`modeling.model_class`, which imports transformers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cpt_residual.modeling.class_names import ClassNames, is_left_over

PLAIN_TYPES: Mapping[str, bool] = {
    "gemma": True,
    "gemma2": True,
    "gemma3_text": True,
    "granite": False,
    "llama": False,
    "mistral": False,
    "olmo2": False,
    "olmo3": False,
    "phi3": False,
    "qwen2": False,
    "qwen3": False,
    "smollm3": True,
}
"""Values of `model_type` whose classes read names of `plain_name` as they are, and whether they
tie head and embedding where config.json does not say."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PLAIN = re.compile(
    r"model\.embed_tokens\.weight|lm_head\.weight|model\.norm\.weight|model\.layers\.\d+\."
    r"(?:self_attn\.(?:(?:q|k|v|o|qkv)_proj\.(?:weight|bias)|[qk]_norm\.weight)"
    r"|mlp\.(?:gate|up|down|gate_up)_proj\.(?:weight|bias)"
    r"|(?:input|post_attention|pre_feedforward|post_feedforward)_layernorm\.weight)"
)


def plain_name(name: str) -> bool:
    """Whether `name` is one that the classes of PLAIN_TYPES have or might have."""
    return _PLAIN.fullmatch(name) is not None


def is_plain(model_type: str, names: Iterable[str]) -> bool:
    """Whether the table says how the class reads tensors called `names`; transformers is not asked
    then."""
    return model_type in PLAIN_TYPES and all(
        plain_name(name) or is_left_over(name) for name in names
    )


def class_names(
    folder: Path, names: Iterable[str], *, model_type: str, tied: bool | None
) -> ClassNames:
    """How the class that config.json in `folder` names reads tensors called `names`; `model_type`
    and `tied` (tie_word_embeddings) are what that file says. Imports transformers unless
    `is_plain`."""
    stored = tuple(names)
    if is_plain(model_type, stored):
        is_tied = PLAIN_TYPES[model_type] if tied is None else tied
        return ClassNames(
            class_name=model_type,
            names={name: name for name in stored if plain_name(name)},
            unread=tuple(name for name in stored if not plain_name(name)),
            rows={_EMBEDDING: "embeddings", _HEAD: "head"},
            tied={_HEAD: _EMBEDDING} if is_tied else {},
        )
    from cpt_residual.modeling.model_class import ask_class

    return ask_class(folder, stored)
