"""What peft makes of an adapter on a model without storage: changes to the base's tensors.

peft decides which module has which factors, ranks and scale, and where each stored tensor belongs.
Importing it takes seconds, so `adapter` imports this module when there is an adapter to merge.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from peft import (
    LoraConfig,
    PeftModel,
    set_peft_model_state_dict,  # pyright: ignore[reportUnknownVariableType]
)
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from transformers import PreTrainedModel

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.loading import build_on_meta, load_config
from cpt_residual.weights.io.checkpoint import Checkpoint

_NAME = "default"  # what peft calls an adapter
_PREFIX = "base_model.model."
_COPY = ".modules_to_save.weight"  # beside the same tensor without it
_FROZEN = re.compile(r"\.(?:base_layer|original_module)(?=\.)")  # of a module with an adapter
_FAULTS = (
    *(AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError),
    *(ValueError, re.error),
)
"""What peft raises for a configuration or tensors of another shape than it expects."""


@dataclass(frozen=True)
class Change:
    """One tensor with the adapter on it: `whole`, or else the base's, plus scale * left @ right.

    trained: the adapter has trained it, rather than stored a frozen tensor that had grown.
    """

    whole: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    scale: float = 0.0
    trained: bool = True

    def same_as(self, other: Change) -> bool:
        """Whether both give the same values on the same base."""
        mine, others = ((each.whole, each.left, each.right) for each in (self, other))
        return self.scale == other.scale and all(
            a is b if a is None or b is None else a.dtype == b.dtype and a.equal(b)
            for a, b in zip(mine, others, strict=True)
        )


def read_changes(adapter: Path, weights: Path, base: Checkpoint) -> dict[str, Change]:
    """The changes by the class's name of the base's tensor. Memory: the adapter.

    Raises CompatibilityError for what peft cannot load onto the class of `base`, for tensors that
    are missing or have no place, and for layers that compute more than base + scale * B @ A.
    """
    tensors = {name: value for name, value in load_file(weights).items() if _COPY not in name}
    try:
        with warnings.catch_warnings(action="ignore"):
            built = _without_storage(base, tensors)
            model = _Recorded(built, _config(adapter), low_cpu_mem_usage=True)
            unexpected = _load(model, tensors)
    except _FAULTS as error:
        lines = [line.strip() for line in str(error).splitlines() if "Error(s) in" not in line]
        raise _refused(weights, lines[:20]) from error
    problems = [f"{name}: the base has no place for it" for name in unexpected]
    frozen = _frozen(model.loaded, base)
    changes = {name: Change(whole=value, trained=False) for name, value in frozen.items()}
    values = model.by_parameter()
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    for path, module in modules:
        try:
            changes |= _changes_of(path.removeprefix(_PREFIX), module, values, frozen)
        except ValueError as error:
            problems.append(f"{path.removeprefix(_PREFIX)}: {error}")
    problems += [
        f"{name}: stored whole, but modules_to_save does not name it"
        for name, change in changes.items()
        if not (change.trained or name in base.rows or name in base.tied)
    ]
    if not tensors:
        problems.append("there are no tensors")
    if problems:
        raise _refused(weights, problems)
    return changes


def _refused(weights: Path, problems: list[str]) -> CompatibilityError:
    return CompatibilityError(
        f"adapter: {weights} cannot be loaded onto the base",
        problems=problems,
        remedy="Nothing is skipped. Give the base that the adapter was trained on, or save the "
        "adapter again (PeftModel.save_pretrained).",
    )


class _Loaded(Protocol):
    unexpected_keys: list[str]


class _Recorded(PeftModel):
    """Keeps what peft loads, by the names that the tensors have in the model: a model without
    storage cannot hold them."""

    loaded: dict[str, Tensor]

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.loaded = dict(state_dict)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def by_parameter(self) -> dict[int, Tensor]:
        """What was loaded, by the id() of the parameter: peft ties some, under several names."""
        found = dict[int, Tensor]()
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if name in self.loaded:
                found.setdefault(id(parameter), self.loaded[name])
        return found


def _config(adapter: Path) -> LoraConfig:
    config = cast("LoraConfig", LoraConfig.from_pretrained(str(adapter), trust_remote_code=False))
    config.init_lora_weights = True  # the values come from the file
    return config


def _without_storage(base: Checkpoint, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """The base's class, with as many rows as the vocabulary tensors that the adapter stores."""
    config = load_config(base.path)
    vocabulary = {*base.rows, *base.tied}
    rows = {
        value.shape[0]
        for name, value in tensors.items()
        if _FROZEN.sub("", name.removeprefix(_PREFIX)) in vocabulary
    }
    if rows:
        cast("Any", config).get_text_config().vocab_size = max(rows)
    return build_on_meta(config)


def _load(model: _Recorded, tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names that have no place in the model."""
    result = cast("_Loaded", set_peft_model_state_dict(model, dict(tensors)))
    return result.unexpected_keys


def _frozen(loaded: Mapping[str, Tensor], base: Checkpoint) -> dict[str, Tensor]:
    """Tensors of the base that the adapter has brought along because they had grown, by their names
    in the base; of a tied pair that one tensor is both."""
    found = {
        _FROZEN.sub("", name.removeprefix(_PREFIX)): value
        for name, value in loaded.items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    for pair in base.tied.items():
        for name, other in (pair, pair[::-1]):
            if name in found:
                found.setdefault(other, found[name])
    return found


def _changes_of(
    path: str,
    module: nn.Module,
    values: Mapping[int, Tensor],
    frozen: Mapping[str, Tensor],
) -> dict[str, Change]:
    def loaded(parameter: Tensor) -> Tensor:
        value = values.get(id(parameter))
        if value is None:
            raise ValueError("the adapter does not store all of its tensors")
        return value

    if isinstance(module, ModulesToSaveWrapper):
        saved = module.modules_to_save[_NAME].named_parameters()
        return {f"{path}.{name}": Change(whole=loaded(value)) for name, value in saved}
    if not isinstance(module, LoraLayer):
        return {}
    layer = cast("Any", module)
    if not isinstance(module, (Linear, Embedding)) or layer.lora_variant:
        raise ValueError("its layer computes more than base + scale * B @ A")
    if isinstance(module, Embedding):  # the weight is (B @ A) transposed
        left = loaded(layer.lora_embedding_A[_NAME]).T
        right = loaded(layer.lora_embedding_B[_NAME]).T
    else:
        left, right = (loaded(each[_NAME].weight) for each in (layer.lora_B, layer.lora_A))
        if layer.fan_in_fan_out:
            left, right = right.T, left.T
    change = Change(
        whole=frozen.get(f"{path}.weight"),
        left=left.float(),
        right=right.float(),
        scale=float(layer.scaling[_NAME]),
    )
    return {f"{path}.weight": change}
