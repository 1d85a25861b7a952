"""A family of fake models to merge, on disk and in float64."""

from __future__ import annotations

from pathlib import Path

import torch

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import DEFAULT_STREAMING, Streaming
from cpt_residual.weights.merge.merge import MergeReport, Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import ResidualManifest, open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from support.pico_family import Tensors, fake_model, opened, read_all


def moved(tensors: Tensors, scale: float, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(
            value.dtype
        )
        for name, value in tensors.items()
    }


def subtract(base: Path, instruct: Path, out: Path) -> ResidualManifest:
    return compute(opened(base, "base"), opened(instruct, "instruct"), out)


def add(
    target: Path,
    residual: Path,
    out: Path,
    alpha: float = 1.0,
    streaming: Streaming = DEFAULT_STREAMING,
) -> MergeReport:
    """A merge with a stored residual."""
    source = StoredDelta(open_residual(residual))
    (report,) = merge(opened(target), source, [Output(alpha, out)], streaming=streaming)
    return report


class Family:
    """base, instruct and target on disk, and their tensors in float64."""

    def __init__(self, root: Path, tensors: Tensors) -> None:
        self.root = root
        parts = {
            "base": tensors,
            "instruct": moved(tensors, 0.05, 1),
            "cpt": moved(tensors, 0.1, 2),
        }
        shards = {"base": 1, "instruct": 2, "cpt": 3}
        for name, values in parts.items():
            fake_model(root / name, values, num_shards=shards[name])
        self.values = {
            name: {key: value.double() for key, value in values.items()}
            for name, values in parts.items()
        }

    def open(self, name: str) -> Checkpoint:
        return opened(self.root / name, "target" if name == "cpt" else name)

    @property
    def pair(self) -> PairDelta:
        return PairDelta(self.open("base"), self.open("instruct"))

    def merge(
        self,
        recipe: MergeRecipe,
        out: str = "out",
        *,
        alpha: float = 1.0,
        streaming: Streaming = DEFAULT_STREAMING,
    ) -> tuple[Tensors, MergeReport]:
        (report,) = merge(
            self.open("cpt"),
            self.pair,
            [Output(alpha, self.root / out)],
            recipe=recipe,
            base=self.open("base") if recipe.needs_base else None,
            streaming=streaming,
        )
        return read_all(self.root / out), report

    def exact(self, name: str, alpha: float = 1.0, strength: float = 1.0) -> torch.Tensor:
        base, instruct, cpt = (self.values[role][name] for role in ("base", "instruct", "cpt"))
        if strength == 1.0:
            return cpt + alpha * (instruct - base)
        return base + strength * (cpt - base) + alpha * (instruct - base)
