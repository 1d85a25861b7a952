"""Write the trained weights as a model directory, on all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cpt_residual.errors import WorkerError
from cpt_residual.modeling.saving import carry_side_files, save_weights
from cpt_residual.train.stored import open_start, verify_weights
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import ShardReader
from cpt_residual.weights.maths.torch_bridge import tensor_of

_NUM_SHOWN = 5


@dataclass
class LostUpdates:
    """Parameters that training has moved, and how many of those rounding moves back."""

    moved: int = 0
    lost: int = 0

    def add(self, start: torch.Tensor, trained: torch.Tensor, stored: torch.Tensor) -> None:
        """start, trained: fp32; stored: `trained` in the dtype that is written."""
        moved = trained != start
        self.moved += int(moved.sum())
        self.lost += int((moved & (stored.float() == start)).sum())

    @property
    def share(self) -> float:
        return self.lost / self.moved if self.moved else 0.0


def write_model(
    model: PreTrainedModel,
    start: Path,
    out: Path,
    *,
    dtype: torch.dtype,
    deepspeed: bool,
    is_first: bool,
) -> float | None:
    """Write the trained model in `dtype` with the small files of `start`; returns the share of
    moved weights that rounding to `dtype` puts back (None for fp32, which rounds nothing, where
    `start` stores parameters in parts, as the experts of most releases, and on other ranks).
    Collective: every rank calls it, the first one writes.

    The fp32 values are taken from where they are exact: the module itself, or DeepSpeed's master
    copies (gathered one parameter at a time, so that a rank needs no second full model)."""
    lost = LostUpdates()
    weights = open_start(start)
    by_parameter: dict[int, torch.Tensor] = {}
    not_finite: list[str] = []
    counted = dtype != torch.float32 and not _in_parts(weights, dict(model.named_parameters()))
    with ShardReader(weights.shards) as reader:
        for name, parameter, trained in _masters(model, deepspeed=deepspeed):
            if not is_first:
                continue
            stored = trained.to(dtype)
            by_parameter[id(parameter)] = stored
            if not math.isfinite(float(stored.float().sum())) and not stored.isfinite().all():
                not_finite.append(name)
            if counted:
                before = tensor_of(reader.read_whole(weights.tensors[name]))
                lost.add(before.float(), trained, stored)
    if not is_first:
        return None
    _refuse(not_finite)
    state = {
        name: by_parameter[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    save_weights(model, state, out, dtype=dtype)
    carry_side_files(start, out, dtype=dtype)
    expected = {name: entry.shape for name, entry in weights.unique_tensors.items()}
    verify_weights(out, expected, dtype)
    return lost.share if counted else None


def _refuse(not_finite: list[str]) -> None:
    if not_finite:
        raise WorkerError(
            "the trained weights are not all numbers",
            problems=[f"{name}: NaN or infinite" for name in not_finite],
            remedy="Nothing was published. Lower learning_rate, raise warmup_steps, or train in "
            "fp32.",
        )


def _masters(
    model: PreTrainedModel, *, deepspeed: bool
) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor]]:
    """(name, parameter, its fp32 value on the CPU) for every parameter, tied ones once."""
    for name, parameter in model.named_parameters():
        value = _gathered(parameter) if deepspeed else parameter.detach()
        yield name, parameter, value.float().cpu()


def _gathered(parameter: torch.nn.Parameter) -> torch.Tensor:
    import deepspeed.utils

    value = cast("Any", deepspeed.utils).safe_get_full_fp32_param(parameter)
    assert value is not None, "DeepSpeed holds no master copy"
    return value.detach()


def _in_parts(start: Checkpoint, parameters: Iterable[str]) -> list[str]:
    """Parameters that `start` does not store as one tensor each."""
    return [name for name in parameters if name not in start.tensors]


def _exact_in_bf16(start: Checkpoint) -> set[str]:
    """Parameters of which all that is stored is in bf16; parts are called `whole part`."""
    is_exact: dict[str, bool] = {}
    for name, entry in start.tensors.items():
        whole = name.partition(" ")[0]
        is_exact[whole] = is_exact.get(whole, True) and entry.dtype == "BF16"
    return {name for name, exact in is_exact.items() if exact}


def _require_whole(start: Checkpoint, parameters: Iterable[str]) -> None:
    """Refuses a start model in which some of these parameters lie in parts: their exact values are
    not read from one tensor."""
    if parts := _in_parts(start, parameters):
        raise WorkerError(
            f"the start model stores {len(parts)} parameter(s) in parts that are not in bf16",
            problems=parts[:_NUM_SHOWN],
            remedy="DeepSpeed would train them from rounded values. Set deepspeed.zero_stage to "
            "off, or give a start model in bf16.",
        )


class ExactMasters(TrainerCallback):
    """Gives DeepSpeed's fp32 master copies the exact start values before the first step.

    DeepSpeed casts the module to bf16 first and makes its masters from that. What the start model
    stores in fp32 or fp16 would begin rounded, and the rounding, which is larger than the updates,
    would pass for training."""

    def __init__(self, start: Path) -> None:
        self._start = start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, state, control
        import deepspeed.utils

        weights = open_start(self._start)
        exact = _exact_in_bf16(weights)
        named = {
            name: parameter
            for name, parameter in kwargs["model"].named_parameters()
            if name not in exact
        }
        _require_whole(weights, named)
        with ShardReader(weights.shards) as reader:
            for name, parameter in named.items():
                start = tensor_of(reader.read_whole(weights.tensors[name])).float()
                cast("Any", deepspeed.utils).safe_set_full_fp32_param(
                    parameter, start.to(parameter.device)
                )
