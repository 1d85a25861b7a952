"""Fake models of one small shape, tied or not, for the tests of interoperability."""

from __future__ import annotations

from pathlib import Path

import torch

from support.pico_family import Tensors, fake_model

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
ROWS = 300
SHAPES = {EMBEDDING: (ROWS, 8), QUERY: (8, 8), DOWN: (8, 12), NORM: (8,), HEAD: (ROWS, 8)}


def values(seed: int, dtype: torch.dtype = torch.bfloat16, *, scale: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in SHAPES.items()
    }


def tensors_of(*, tied: bool, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    found = values(seed, dtype)
    if tied:
        del found[HEAD]
    return found


def model(
    folder: Path,
    tensors: Tensors,
    *,
    tied: bool = False,
    num_shards: int = 1,
    model_type: str = "llama",
) -> Path:
    config = {
        "tie_word_embeddings": tied,
        "vocab_size": ROWS,
        "model_type": model_type,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    return fake_model(folder, tensors, num_shards=num_shards, config=config)
