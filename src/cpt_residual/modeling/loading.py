"""Load a model directory, or refuse. Nothing is resized, re-initialised or cast in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cpt_residual.errors import CompatibilityError

__all__ = ["build_on_meta", "load_causal_lm", "load_config"]


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in `folder`."""
    return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, local_files_only=True))


def load_causal_lm(
    folder: Path, *, dtype: torch.dtype | None, attention: str | None = "sdpa"
) -> PreTrainedModel:
    """The model with all its weights in `dtype` (None: as config.json says), on the CPU (sharded
    under DeepSpeed ZeRO-3). `attention` None: what transformers chooses.

    Raises CompatibilityError naming every tensor that is missing, superfluous or of another
    shape: transformers would fill those with random numbers."""
    model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
        folder,
        dtype="auto" if dtype is None else dtype,
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    problems = [
        f"{kind.removesuffix('_keys')}: {name}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in sorted(map(str, report[kind]))
    ]
    if problems:
        raise CompatibilityError(
            f"the weights in {folder} are not those of its config.json",
            problems=problems,
            remedy="transformers would put random tensors in their place. Fetch or save the model "
            "again.",
        )
    return cast("PreTrainedModel", model)


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without storage: names, shapes and FLOPs can be asked, nothing is allocated.

    Eager attention, because its matrix products are visible to torch's FLOP counter."""
    with torch.device("meta"):
        model = cast("Any", AutoModelForCausalLM).from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    return cast("PreTrainedModel", model)
