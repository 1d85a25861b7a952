"""Scores of one variant: `results.json`, `samples.jsonl`, `evaluation.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cpt_residual.base_model import Frozen
from cpt_residual.config.schema import Launch, Suite
from cpt_residual.config.suite_tasks import AskedOf
from cpt_residual.core.rates import (
    CPU_FLOPS_PER_THREAD,
    EVALUATION_MEMORY,
    GPU_PEAK_FLOPS,
    GPU_SCORING_MFU,
    GPU_SECONDS_PER_GENERATED_TOKEN,
    SECONDS_TO_START_EVALUATION,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.data.cloze.questions import QUESTIONS_FILE
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.scorer import harness_version, own_scorer_sha256
from cpt_residual.launch.environment import uses_gpu
from cpt_residual.stages.inputs import CorpusInput, num_parameters_of
from cpt_residual.stages.world import World

if TYPE_CHECKING:
    from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings

_BYTES = {"fp32": 4, "bf16": 2}
_DISK_BYTES = 2**20


class EvaluateRecipe(Frozen):
    """What is asked, and which code scores. Model, template and documents are inputs.

    `heldout`: corpus -> file inside its artifact."""

    variant: str
    suites: dict[str, Suite]
    heldout: dict[str, str]
    precision: Literal["fp32", "bf16"]
    seed: int
    lm_eval: str
    scorer_sha256: str


@dataclass(frozen=True)
class Evaluate:
    """One variant on all suites.

    `template`: the model whose chat template every variant is asked through; `base`: the family's
    base, whose EOS ids end every variant's responses too; `corpora`: held-out text for `heldout`
    suites; `world`: probes for `world` suites; `probes`: questions by `cloze` suite. `launch` is
    how it runs (batch size, device), never part of the recipe.
    """

    variant: str
    model: Stage
    template: Stage
    base: Stage
    suites: Mapping[str, Suite]
    corpora: Mapping[str, CorpusInput]
    world: Stage | None
    seed: int
    launch: Launch
    probes: Mapping[str, Stage] = field(default_factory=dict[str, Stage])
    precision: Literal["fp32", "bf16"] = "fp32"

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    tracked: ClassVar[bool] = True

    @property
    def node(self) -> str:
        return f"evaluate:{self.variant}"

    def recipe(self) -> EvaluateRecipe:
        return EvaluateRecipe(
            variant=self.variant,
            suites={key: suite.without_words() for key, suite in self.suites.items()},
            heldout={key: given.heldout for key, given in self._heldout().items() if given.heldout},
            precision=self.precision,
            seed=self.seed,
            lm_eval=harness_version(),
            scorer_sha256=own_scorer_sha256(self.suites.values()),
        )

    def inputs(self) -> Mapping[str, Stage]:
        inputs = {"model": self.model, "template": self.template, "base": self.base}
        inputs.update({f"heldout:{key}": given.stage for key, given in self._heldout().items()})
        if any(suite.world_probes() for suite in self.suites.values()):
            inputs["world"] = self._world()
        inputs.update({f"probe:{key}": stage for key, stage in self._cloze().items()})
        return inputs

    def describe(self) -> str:
        return ", ".join(self.suites)

    def cost(self) -> Cost:
        """2 N FLOPs a token that is read or generated; on GPUs a batch takes a fixed time for each
        token it generates. The counts are estimates (`workload` of each suite)."""
        asked = self._asked_of()
        work = [each for suite in self.suites.values() for each in suite.workload(asked)]
        flops = 2.0 * num_parameters_of(self.model) * sum(each.tokens for each in work)
        seconds = flops / CPU_FLOPS_PER_THREAD
        if uses_gpu(self.launch):
            batches = sum(each.generated_batches(self.launch.eval_batch_size) for each in work)
            seconds = flops / (GPU_PEAK_FLOPS * GPU_SCORING_MFU)
            seconds += batches * GPU_SECONDS_PER_GENERATED_TOKEN
        return Cost(
            flops=flops, seconds=SECONDS_TO_START_EVALUATION + seconds, disk_bytes=_DISK_BYTES
        )

    def resources(self) -> Resources:
        """One GPU where there are some, so that as many variants are evaluated at once."""
        weights = _BYTES[self.precision] * num_parameters_of(self.model)
        if uses_gpu(self.launch):
            memory = EVALUATION_MEMORY + weights  # while they are loaded
            return Resources(gpus_per_node=1, memory_bytes=memory, gpu_memory_bytes=weights)
        return Resources(memory_bytes=EVALUATION_MEMORY + weights)

    def _asked_of(self) -> AskedOf:
        world = self.world if isinstance(self.world, World) else None
        made_here = (key for key, given in self.corpora.items() if isinstance(given.stage, World))
        return AskedOf(world.size.num_prompts_per_type if world else 0, frozenset(made_here))

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """The tasks are known and their data is here, the template renders, and the variant has
        the tokens of the template's owner."""
        template, model, base = map(folder_of, (self.template, self.model, self.base))
        if template is None:
            return
        from cpt_residual.evaluation.stock import require_tasks
        from cpt_residual.evaluation.template import require_chat, require_tokens

        suites = self.suites.values()
        stock = tuple(task for suite in suites for task in suite.stock_tasks())
        yield partial(require_tasks, stock)
        asks = any(suite.asks_through_chat() for suite in suites)
        yield partial(require_chat, template, base, asks=asks)
        if model is not None:
            yield partial(require_tokens, template, model)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        import torch

        from cpt_residual.evaluation.harness import evaluate
        from cpt_residual.evaluation.results import write_evaluation

        torch.set_num_threads(ctx.threads)
        result = evaluate(
            inputs["model"].path,
            self.suites,
            variant=self.variant,
            inputs=self._files(inputs),
            settings=self._settings(work, has_gpu=torch.cuda.is_available()),
            progress=ctx.progress,
        )
        write_evaluation(result, work / "out")
        return {f"{row.task}/{row.metric}": row.value for row in result.rows}

    def _files(self, inputs: Mapping[str, ArtifactRef]) -> EvaluationInputs:
        from cpt_residual.evaluation.harness import EvaluationInputs

        heldout = {
            key: inputs[f"heldout:{key}"].path / given.heldout
            for key, given in self._heldout().items()
            if given.heldout
        }
        world = inputs.get("world")
        return EvaluationInputs(
            template_dir=inputs["template"].path,
            base_dir=inputs["base"].path,
            probes_dir=world.path / "probes" if world else None,
            heldout=heldout,
            questions={key: inputs[f"probe:{key}"].path / QUESTIONS_FILE for key in self._cloze()},
        )

    def _settings(self, work: Path, *, has_gpu: bool) -> EvaluationSettings:
        from cpt_residual.evaluation.harness import EvaluationSettings

        device = self.launch.device
        if device == "auto":
            device = "cuda" if has_gpu else "cpu"
        return EvaluationSettings(
            scratch=work,
            seed=self.seed,
            precision=self.precision,
            device=device,
            batch_size=self.launch.eval_batch_size,
        )

    def _heldout(self) -> dict[str, CorpusInput]:
        """The corpora whose held-out documents suites ask about; each must have some."""
        wanted = sorted({key for suite in self.suites.values() for key in suite.heldout_corpora()})
        missing = [
            key for key in wanted if key not in self.corpora or not self.corpora[key].heldout
        ]
        if missing:
            raise ConfigError(
                f"evaluate:{self.variant} asks for held-out text that its corpora do not have",
                problems=[f"corpus {key}" for key in missing],
                remedy="Set heldout_documents of the corpus above 0, or take it out of the suite.",
            )
        return {key: self.corpora[key] for key in wanted}

    def _cloze(self) -> dict[str, Stage]:
        """The knowledge probe of every suite that asks cloze questions."""
        wanted = sorted(key for key, suite in self.suites.items() if suite.cloze_questions())
        return {key: self.probes[key] for key in wanted}

    def _world(self) -> Stage:
        if self.world is None:
            raise ConfigError(
                f"evaluate:{self.variant} asks for probes of the world, but there is no world",
                remedy="Add `world` to the experiment, or take the suite out.",
            )
        return self.world
