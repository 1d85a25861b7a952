"""The DeepSpeed dict: a pure function of the settings, with every number written out.

There is no `optimizer` section on purpose: with it DeepSpeed puts weight decay on the norms and
the losses move by 1e-4; the optimizer is the one that Trainer builds. `auto` appears nowhere:
Trainer compares the numbers with its own arguments and refuses a disagreement.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from cpt_residual.config.schema import DeepSpeed

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def deepspeed_config(
    settings: DeepSpeed,
    *,
    precision: Literal["fp32", "bf16"],
    micro_batch_rows: int,
    accumulation_steps: int,
    num_processes: int,
    max_grad_norm: float,
) -> dict[str, Json] | None:
    """The dict for `TrainingArguments(deepspeed=...)`, or None when DeepSpeed is off."""
    if settings.zero_stage == "off":
        return None
    config: dict[str, Json] = {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": accumulation_steps,
        "train_batch_size": micro_batch_rows * accumulation_steps * num_processes,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_optimization": _zero(settings),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16":
        # Sums of many micro-batches lose bits in bf16.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero(settings: DeepSpeed) -> dict[str, Json]:
    zero: dict[str, Json] = {
        "stage": settings.zero_stage,
        "overlap_comm": settings.overlap_comm,
        "contiguous_gradients": True,
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if settings.zero_stage == 3:
        # Without it a save ends with exit code 0 and no weights.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return zero
