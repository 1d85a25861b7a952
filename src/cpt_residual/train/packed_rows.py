"""Whether a model class keeps the documents of a packed row apart."""

from __future__ import annotations

import traceback

import torch
from transformers import PreTrainedModel

__all__ = ["keeps_documents_apart"]

_DETECTION = "find_packed_sequence_indices"  # of transformers.masking_utils


def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether attention of `model`, a replica on the meta device, stops where positions begin anew.

    transformers looks at the positions for that, which needs their values: without them the classes
    that look fail in that function, and those that do not (BLOOM, Falcon) run through."""
    ids_BT = torch.zeros((2, 8), dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)
    except (RuntimeError, NotImplementedError) as error:
        return any(frame.name == _DETECTION for frame in traceback.extract_tb(error.__traceback__))
    except TypeError:  # no positions
        return False
    return False
