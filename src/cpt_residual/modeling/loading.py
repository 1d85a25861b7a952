"""Load a model directory, or refuse. Nothing is resized, re-initialised or cast in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cpt_residual.errors import CompatibilityError

__all__ = [
    "TensorFacts",
    "WeightFiles",
    "build_on_meta",
    "load_causal_lm",
    "load_config",
    "stored_dtype",
]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

TensorFacts = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a stored tensor."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFiles:
    """The safetensors files of a model directory, read one tensor at a time.

    Raises CompatibilityError when the directory has no safetensors weights or misses a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shard_of = _shards(folder)

    def names(self) -> list[str]:
        return sorted(self._shard_of)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def read(self, name: str) -> torch.Tensor:
        with _open(self.folder / self._shard_of[name]) as file:
            return file.get_tensor(name)

    def facts(self) -> dict[str, TensorFacts]:
        """Shape and dtype of every tensor, from the headers only."""
        found: dict[str, TensorFacts] = {}
        for name in self.names():
            with _open(self.folder / self._shard_of[name]) as file:
                part = file.get_slice(name)
                found[name] = (tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.int64))
        return found


def _open(path: Path) -> Any:
    """safetensors has no type stubs; its handle is used only in this file."""
    return cast("Any", safe_open)(path, framework="pt")


def _shards(folder: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    if (folder / _INDEX).exists():
        shards = dict(json.loads((folder / _INDEX).read_text())["weight_map"])
        missing = sorted({file for file in shards.values() if not (folder / file).exists()})
        if missing:
            raise CompatibilityError(
                f"weight files are missing from {folder}",
                problems=missing,
                remedy="Fetch the model again.",
            )
        return shards
    if (folder / _SINGLE).exists():
        with _open(folder / _SINGLE) as file:
            return dict.fromkeys(cast("list[str]", file.keys()), _SINGLE)
    raise CompatibilityError(
        f"no safetensors weights in {folder}",
        problems=[f"looked for {_SINGLE} and {_INDEX}"],
        remedy="Only the safetensors format is read: convert the model with "
        "`save_pretrained` of a current transformers release.",
    )


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in `folder`."""
    return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, local_files_only=True))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most stored parameters (by number of elements)."""
    counts: dict[torch.dtype, int] = {}
    for shape, dtype in WeightFiles(folder).facts().values():
        counts[dtype] = counts.get(dtype, 0) + int(torch.Size(shape).numel())
    return max(counts, key=lambda each: counts[each])


def load_causal_lm(
    folder: Path, *, dtype: torch.dtype, attention: str | None = "sdpa"
) -> PreTrainedModel:
    """The model with all its weights in `dtype`, on the CPU (sharded under DeepSpeed ZeRO-3).

    Raises CompatibilityError naming every tensor that is missing, superfluous or of another
    shape: transformers would fill those with random numbers."""
    model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
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
            remedy="transformers would train random tensors in their place. Fetch the model again.",
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
