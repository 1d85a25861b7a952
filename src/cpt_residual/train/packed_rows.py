"""Check that a model class masks documents of a packed sequence from each other."""

from __future__ import annotations

import traceback

import torch
from torch import nn
from transformers import PreTrainedModel

from cpt_residual.errors import CompatibilityError

_DETECTION = "find_packed_sequence_indices"  # of transformers.masking_utils
_STATELESS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "moe"})
"""Values of `layer_types` whose layers see other tokens through masked attention only."""


def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether all that `model`, a replica on the meta device, computes of a token stops where
    positions begin anew: attention looks at them, and no layer carries a state along the row."""
    return not _carries_state(model) and _attention_looks_at_positions(model)


def require_documents_apart(model: PreTrainedModel) -> None:
    """CompatibilityError unless `model` can be trained on packed rows."""
    if keeps_documents_apart(model):
        return
    reason = "its attention does not look at where position ids begin anew"
    if _carries_state(model):
        reason = "not all of its layers are attention: convolutions, recurrences and linear "
        reason += "attention carry a state along the row"
    raise CompatibilityError(
        f"{type(model).__name__} does not keep the documents of a packed row apart",
        problems=[reason],
        remedy="Every document would be trained with its neighbours as context. Train a model "
        "of another class, or give a pack with one document in a row.",
    )


def _carries_state(model: PreTrainedModel) -> bool:
    """By the kinds of layers that the configuration lists, and by convolutions along the row,
    which every state space model and most of the linear attentions have."""
    kinds: list[str] = getattr(model.config.get_text_config(), "layer_types", None) or []
    return not _STATELESS.issuperset(kinds) or any(
        isinstance(module, nn.Conv1d) for module in model.modules()
    )


def _attention_looks_at_positions(model: PreTrainedModel) -> bool:
    """transformers looks at the positions for that, which needs their values: without them the
    classes that look fail in that function, and those that do not (BLOOM, Falcon) run through."""
    ids_BT = torch.zeros((2, 8), dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)
    except (RuntimeError, NotImplementedError) as error:
        return any(frame.name == _DETECTION for frame in traceback.extract_tb(error.__traceback__))
    except TypeError:  # no positions
        return False
    return False
