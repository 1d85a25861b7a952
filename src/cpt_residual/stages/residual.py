"""theta_instruct - theta_base as an artifact (Jindal et al. 2024, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from cpt_residual.config.merging import EXACT_STORAGE, Storage, VocabPolicy
from cpt_residual.config.schema import Frozen
from cpt_residual.core.rates import WEIGHT_BYTES_PER_SECOND, WEIGHTS_MEMORY
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.stages.inputs import model_bytes_of, num_parameters_of, open_model

_BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2}


class ResidualRecipe(Frozen):
    """The two models are inputs."""

    storage: Storage
    vocab_policy: VocabPolicy


@dataclass(frozen=True)
class ResidualStage:
    """The residual of one family."""

    key: str
    base: Stage
    instruct: Stage
    storage: Storage = EXACT_STORAGE
    vocab_policy: VocabPolicy = "equal"

    name: ClassVar[str] = "residual"
    version: ClassVar[int] = 3

    @property
    def node(self) -> str:
        return f"residual:{self.key}"

    def num_parameters(self) -> int:
        """Of the models it is made from; 0 when not known yet."""
        return num_parameters_of(self.instruct) or num_parameters_of(self.base)

    def recipe(self) -> ResidualRecipe:
        return ResidualRecipe(storage=self.storage, vocab_policy=self.vocab_policy)

    def inputs(self) -> Mapping[str, Stage]:
        return {"base": self.base, "instruct": self.instruct}

    def cost(self) -> Cost:
        """Both models are hashed and read, the residual is written and hashed."""
        num_parameters = self.num_parameters()
        size = _BYTES_PER_PARAMETER[self.storage.dtype] * num_parameters
        handled = 2 * (model_bytes_of(self.base) + model_bytes_of(self.instruct) + size)
        return Cost(
            flops=num_parameters, seconds=handled / WEIGHT_BYTES_PER_SECOND, disk_bytes=size
        )

    def resources(self) -> Resources:
        return Resources(memory_bytes=WEIGHTS_MEMORY)

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """Base and instruct fit: config, names, shapes, tokens, and tied tensors stored twice."""
        base, instruct = folder_of(self.base), folder_of(self.instruct)
        if base and instruct:
            from cpt_residual.weights.apply.preflight import require_pair

            yield partial(require_pair, base, instruct, self.vocab_policy)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.weights.io.reader import Streaming
        from cpt_residual.weights.residual.compute import compute

        base = open_model(inputs["base"], role="base")
        instruct = open_model(inputs["instruct"], role="instruct")
        manifest = compute(
            base,
            instruct,
            work / "out",
            storage=self.storage,
            vocab_policy=self.vocab_policy,
            streaming=Streaming(progress=ctx.progress, threads=ctx.threads),
        )
        return {
            "num_parameters": manifest.num_parameters,
            "flops": float(manifest.num_parameters),
            "base_norm": manifest.base_norm,
            "instruct_norm": manifest.instruct_norm,
            "residual_norm": manifest.residual_norm,
            "relative_norm": manifest.residual_norm / manifest.base_norm
            if manifest.base_norm
            else 0.0,
            **(
                {}
                if manifest.cosine_base_residual is None
                else {"cosine_base_residual": manifest.cosine_base_residual}
            ),
            "bit_exact": manifest.bit_exact,
            "num_rounded": manifest.num_rounded,
            "max_ulps": manifest.max_ulps,
            "relative_error": manifest.relative_error,
        }
