"""How far CPT and instruction tuning moved the weights, and whether against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cpt_residual.config.schema import Frozen
from cpt_residual.core.rates import (
    GEOMETRY_BYTES_PER_SECOND,
    WEIGHT_BYTES_PER_SECOND,
    WEIGHTS_MEMORY,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.stages.inputs import model_bytes_of, open_model

GEOMETRY_FILE = "geometry.json"


class GeometryRecipe(Frozen):
    """Nothing but the models decides the numbers."""


@dataclass(frozen=True)
class Geometry:
    """geometry.json (a `weights.geometry.GeometryReport`) of one family."""

    base: Stage
    instruct: Stage
    base_cpt: Stage
    instruct_cpt: Stage | None = None

    name: ClassVar[str] = "geometry"
    version: ClassVar[int] = 3

    @property
    def node(self) -> str:
        return "geometry"

    def recipe(self) -> GeometryRecipe:
        return GeometryRecipe()

    def inputs(self) -> Mapping[str, Stage]:
        inputs = {"base": self.base, "instruct": self.instruct, "base_cpt": self.base_cpt}
        return inputs | ({"instruct_cpt": self.instruct_cpt} if self.instruct_cpt else {})

    def cost(self) -> Cost:
        """Every model is hashed, and read for its norms."""
        size = sum(map(model_bytes_of, self.inputs().values()))
        return Cost(seconds=size / WEIGHT_BYTES_PER_SECOND + size / GEOMETRY_BYTES_PER_SECOND)

    def resources(self) -> Resources:
        return Resources(memory_bytes=WEIGHTS_MEMORY)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.core.files import write_json_atomic
        from cpt_residual.weights.analysis.geometry import Family, measure
        from cpt_residual.weights.io.reader import Streaming

        models = {role: open_model(ref, role=role) for role, ref in inputs.items()}
        report = measure(
            Family(**models), streaming=Streaming(progress=ctx.progress, threads=ctx.threads)
        )
        write_json_atomic(work / "out" / GEOMETRY_FILE, report)
        total = report.total.model_dump()
        return {name: value for name, value in total.items() if value is not None}
