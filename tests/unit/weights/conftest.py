from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.merge_family import Family
from support.pico_family import Tensors


@pytest.fixture
def tensors() -> Tensors:
    """Two layers' worth of bf16 tensors of an untied model."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "lm_head.weight": (8, 4),
        "model.embed_tokens.weight": (8, 4),
        "model.layers.0.input_layernorm.weight": (4,),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
    }
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in shapes.items()
    }


@pytest.fixture
def family(tmp_path: Path, tensors: Tensors) -> Family:
    return Family(tmp_path, tensors)
