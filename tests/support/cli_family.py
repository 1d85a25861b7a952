"""A family of fake models for the verbs of `cpt-residual`, and how a verb ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from support.pico_family import Tensors, fake_model

SHAPES = {
    "model.embed_tokens.weight": (288, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (288, 8),
}
NUM_PARAMETERS = 4808


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


Run = Callable[..., Done]


def tensors(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    wanted = SHAPES | {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in wanted.items()
    }


def make(root: Path) -> Path:
    for seed, name in enumerate(("base", "instruct", "cpt")):
        fake_model(root / name, tensors(seed), num_shards=3 if name == "cpt" else 1)
    return root


PAIR = ("--base", "base", "--instruct", "instruct")
APPLY = ("apply", "--target", "cpt", *PAIR, "--no-verify")


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
