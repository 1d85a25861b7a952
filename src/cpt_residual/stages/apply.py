"""theta_target + alpha * theta_residual as a model (Jindal et al. 2024, eq. 2 at alpha = 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.config.schema import Frozen
from cpt_residual.core.rates import (
    SECONDS_TO_CHECK_STOPS,
    WEIGHT_BYTES_PER_SECOND,
    WEIGHTS_MEMORY,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.launch.hub import HubModel
from cpt_residual.stages.inputs import (
    model_bytes_of,
    num_parameters_of,
    open_model,
    published_hashes,
)
from cpt_residual.stages.residual import ResidualStage
from cpt_residual.stages.source import Source

if TYPE_CHECKING:
    from cpt_residual.weights.merge.merge_record import Role

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
    version: ClassVar[int] = 4

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
        """Target and residual are hashed, and read as often as the recipe needs; the merged model
        is written, hashed and loaded."""
        size, reads = model_bytes_of(self.target), self.merge.num_reads
        handled = (4 + reads) * size + (1 + reads) * self.residual.cost().disk_bytes
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
        from cpt_residual.weights.apply.preflight import Merge, require_merge

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
        from cpt_residual.weights.apply.job import ApplyJob, ApplyOptions
        from cpt_residual.weights.io.model_ref import NamedModel, name_of
        from cpt_residual.weights.io.reader import Streaming
        from cpt_residual.weights.merge.merge import Output

        refs: dict[Role, ArtifactRef] = {"target": inputs["target"]}
        if self.base:
            refs["target_base"] = inputs["base"]
        models = {
            role: NamedModel(open_model(ref, role=role), name_of(ref.path))
            for role, ref in refs.items()
        }
        job = ApplyJob.of(
            models["target"],
            inputs["residual"].path,
            (Output(self.alpha, work / "out"),),
            recipe=self.merge,
            options=ApplyOptions(streaming=Streaming(progress=ctx.progress, threads=ctx.threads)),
            base=models.get("target_base"),
        )
        hashes: dict[Role, dict[str, str]] = {
            role: published_hashes(ref) for role, ref in refs.items()
        }
        job = job.published(hashes, self._released(), name=work.name)
        (report,) = job.run()
        measured = report.model_dump(exclude={"folder", "eos_token_ids", "left_out", "stops_at"})
        return {
            **{name: value for name, value in measured.items() if value is not None},
            "relative_norm": report.relative_norm or 0.0,
            "flops": float(_FLOPS_PER_PARAMETER * report.num_parameters),
            **self._ancestry(inputs, ctx),
            "stops_at": " ".join(map(str, report.stops_at or ())),
            **({"notes": "; ".join(job.addition.notes)} if job.addition.notes else {}),
        }

    def _released(self) -> dict[Role, HubModel]:
        """The models of the records that are released ones."""
        stages: dict[Role, Stage | None] = {
            "target": self.target,
            "target_base": self.base,
            "base": self.residual.base,
            "instruct": self.residual.instruct,
        }
        return {
            role: HubModel(stage.model.source, stage.model.revision)
            for role, stage in stages.items()
            if isinstance(stage, Source) and stage.model.revision is not None
        }

    def _ancestry(self, inputs: Mapping[str, ArtifactRef], ctx: RunContext) -> Metrics:
        """How far the weights that the residual was made for are from those it is added to."""
        if self.ancestors is None:
            return {}
        from cpt_residual.weights.analysis.model_distance import measure
        from cpt_residual.weights.io.reader import Streaming

        found = measure(
            open_model(inputs["residual_base"], role="residual_base"),
            open_model(inputs["target_base"], role="target_base"),
            streaming=Streaming(progress=ctx.progress, threads=ctx.threads),
        )
        return {
            "ancestors_relative_distance": found.relative_distance or 0.0,
            **({} if found.cosine is None else {"ancestors_cosine": found.cosine}),
        }
