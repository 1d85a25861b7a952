"""Models for the weights engine, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.merge_family import Family, moved, subtract
from support.pico_family import Tensors, fake_model


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


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder, as files are installed into."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def models(tmp_path: Path, tensors: Tensors) -> Path:
    """base, instruct and a target of two shards."""
    for number, name in enumerate(("base", "instruct", "cpt")):
        grown = {key: value * (1 + number) for key, value in tensors.items()}
        fake_model(tmp_path / name, grown, num_shards=2 if name == "cpt" else 1)
    return tmp_path


@pytest.fixture
def stored(tmp_path: Path, tensors: Tensors) -> tuple[Path, Path, Path]:
    """base (one file), instruct (two shards), residual."""
    base = fake_model(tmp_path / "base", tensors)
    instruct = fake_model(tmp_path / "instruct", moved(tensors, 0.01), num_shards=2)
    subtract(base, instruct, tmp_path / "residual")
    return base, instruct, tmp_path / "residual"
