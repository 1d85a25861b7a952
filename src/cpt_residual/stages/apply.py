"""theta_target + alpha * theta_residual as a model (Jindal et al. 2024, eq. 2 at alpha = 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.config.schema import Frozen
from cpt_residual.core.rates import (
    SECONDS_TO_CHECK_STOPS,
    WEIGHT_BYTES_PER_SECOND,
    WEIGHTS_MEMORY,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.stages.inputs import model_bytes_of, num_parameters_of, open_model
from cpt_residual.stages.residual import ResidualStage

_FLOPS_PER_PARAMETER = 2  # one product, one sum


class ApplyRecipe(Frozen):
    """Target, residual and, where the recipe needs it, base are inputs."""

    alpha: float
    merge: MergeRecipe


@dataclass(frozen=True)
class Apply:
    """One merged model, shown to load and to stop at every EOS token id."""

    key: str
    target: Stage
    residual: ResidualStage
    alpha: float
    merge: MergeRecipe = field(default=MergeRecipe(), hash=False)
    base: Stage | None = None
    ancestors: tuple[Stage, Stage] | None = None  # the residual's base and the target's, if two

    name: ClassVar[str] = "apply"
    version: ClassVar[int] = 3

    @property
    def node(self) -> str:
        return f"apply:{self.key}"

    def num_parameters(self) -> int:
        """Of the target; 0 when not known yet."""
        return num_parameters_of(self.target) or self.residual.num_parameters()

    def recipe(self) -> ApplyRecipe:
        return ApplyRecipe(alpha=self.alpha, merge=self.merge)

    def inputs(self) -> Mapping[str, Stage]:
        inputs: dict[str, Stage] = {"target": self.target, "residual": self.residual}
        if self.base:
            inputs["base"] = self.base
        if self.ancestors:
            inputs["residual_base"], inputs["target_base"] = self.ancestors
        return inputs

    def cost(self) -> Cost:
        """Target and residual are hashed and read, the merged model is written, hashed and loaded
        once. A method that measures first reads more, which is not counted."""
        size = model_bytes_of(self.target)
        handled = 5 * size + 2 * self.residual.cost().disk_bytes
        return Cost(
            flops=_FLOPS_PER_PARAMETER * self.num_parameters(),
            seconds=SECONDS_TO_CHECK_STOPS + handled / WEIGHT_BYTES_PER_SECOND,
            disk_bytes=size,
        )

    def resources(self) -> Resources:
        return Resources(memory_bytes=WEIGHTS_MEMORY)

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """The residual fits the target, and the merged model will have a chat side."""
        target = folder_of(self.target)
        base, instruct = folder_of(self.residual.base), folder_of(self.residual.instruct)
        target_base = folder_of(self.base) if self.base else None
        if not (target and base and instruct) or (self.base and not target_base):
            return
        from cpt_residual.weights.preflight import Merge, require_merge

        planned = Merge(
            target=target,
            base=base,
            instruct=instruct,
            target_base=target_base,
            recipe=self.merge,
            vocab_policy=self.residual.vocab_policy,
        )
        yield partial(require_merge, planned)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.modeling.chat_check import require_chat_side
        from cpt_residual.weights.addition import Addition
        from cpt_residual.weights.delta import StoredDelta
        from cpt_residual.weights.merge import Output, merged_models
        from cpt_residual.weights.reader import Streaming
        from cpt_residual.weights.residual_format import open_residual
        from cpt_residual.weights.verification import final_stops

        source = StoredDelta(open_residual(inputs["residual"].path))
        require_chat_side(source.instruct_side, "instruct")
        addition = Addition(
            open_model(inputs["target"], role="target"),
            source,
            self.merge,
            open_model(inputs["base"], role="base") if self.base else None,
        )
        outputs = [Output(self.alpha, work / "out")]
        streaming = Streaming(progress=ctx.progress, threads=ctx.threads)
        with merged_models(addition, outputs, streaming=streaming) as (model,):
            report = model.report
            stops = final_stops(model.folder, work / "out", in_store=True)
        ancestry = self._ancestry(inputs, ctx)
        return {
            "alpha": report.alpha,
            "num_parameters": report.num_parameters,
            "flops": float(_FLOPS_PER_PARAMETER * report.num_parameters),
            "target_norm": report.target_norm,
            "residual_norm": report.residual_norm,
            "relative_norm": report.relative_norm or 0.0,
            **({} if report.cosine is None else {"cosine": report.cosine}),
            "lost_share": report.lost_share,
            **ancestry,
            "stops_at": " ".join(map(str, stops)),
            **({"notes": "; ".join(addition.notes)} if addition.notes else {}),
        }

    def _ancestry(self, inputs: Mapping[str, ArtifactRef], ctx: RunContext) -> Metrics:
        """How far the weights that the residual was made for are from those it is added to."""
        if self.ancestors is None:
            return {}
        from cpt_residual.weights.ancestry import measure
        from cpt_residual.weights.reader import Streaming

        found = measure(
            open_model(inputs["residual_base"], role="residual_base"),
            open_model(inputs["target_base"], role="target_base"),
            streaming=Streaming(progress=ctx.progress, threads=ctx.threads),
        )
        return {
            "ancestors_relative_distance": found.relative_distance or 0.0,
            **({} if found.cosine is None else {"ancestors_cosine": found.cosine}),
        }
