"""The DeepSpeed dict, word for word."""

from __future__ import annotations

from typing import Literal

from cpt_residual.config.schema import DeepSpeed
from cpt_residual.train.deepspeed_config import Json, deepspeed_config


def config_of(settings: DeepSpeed, precision: Literal["fp32", "bf16"] = "bf16") -> Json:
    return deepspeed_config(
        settings,
        precision=precision,
        micro_batch_rows=4,
        accumulation_steps=8,
        num_processes=2,
        max_grad_norm=1.0,
    )


def test_off_is_no_config() -> None:
    assert config_of(DeepSpeed(zero_stage="off")) is None


def test_zero_3_with_offload_in_bf16() -> None:
    assert config_of(DeepSpeed(zero_stage=3, offload_optimizer=True)) == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
        "train_batch_size": 64,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2147483647,
        "wall_clock_breakdown": False,
    }


def test_zero_2_in_fp32() -> None:
    assert config_of(DeepSpeed(zero_stage=2, overlap_comm=False), "fp32") == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
        "train_batch_size": 64,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2147483647,
        "wall_clock_breakdown": False,
    }
