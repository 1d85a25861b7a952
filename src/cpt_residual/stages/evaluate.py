"""Scores of one variant: `results.json`, `samples.jsonl`, `evaluation.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cpt_residual.config.cloze import ClozeSuite
from cpt_residual.config.derived import asks_through_chat
from cpt_residual.config.schema import (
    Frozen,
    HarnessSuite,
    HeldoutSuite,
    Launch,
    Suite,
    WorldSuite,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, RunContext, Stage
from cpt_residual.data.questions import QUESTIONS_FILE
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.scorer import harness_version, own_scorer_sha256
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.residual import num_parameters_of

if TYPE_CHECKING:
    from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings

_SECONDS_MEASURED = 2.0  # about 700 prompts and 300 documents, one thread
_PARAMETERS_MEASURED = 1.2e6
_MEMORY_BYTES = 900 * 2**20  # libraries and a batch
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
    version: ClassVar[int] = 1

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
            scorer_sha256=own_scorer_sha256(cloze=bool(self._cloze())),
        )

    def inputs(self) -> Mapping[str, Stage]:
        inputs = {"model": self.model, "template": self.template, "base": self.base}
        inputs.update({f"heldout:{key}": given.stage for key, given in self._heldout().items()})
        if any(isinstance(suite, WorldSuite) for suite in self.suites.values()):
            inputs["world"] = self._world()
        inputs.update({f"probe:{key}": stage for key, stage in self._cloze().items()})
        return inputs

    def describe(self) -> str:
        return ", ".join(self.suites)

    def cost(self) -> Cost:
        """Time is known for the world's own suites only (stock tasks differ by orders)."""
        num_parameters = num_parameters_of(self.model)
        own = all(isinstance(suite, WorldSuite | HeldoutSuite) for suite in self.suites.values())
        size = max(1.0, num_parameters / _PARAMETERS_MEASURED)
        return Cost(
            seconds=_SECONDS_MEASURED * size if own and self.world is not None else 0.0,
            memory_bytes=_MEMORY_BYTES + _BYTES[self.precision] * num_parameters,
            disk_bytes=_DISK_BYTES,
        )

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """The tasks are known and their data is here, the template renders, and the variant has
        the tokens of the template's owner."""
        template, model, base = map(folder_of, (self.template, self.model, self.base))
        if template is None:
            return
        from cpt_residual.evaluation.preflight import require_chat, require_tasks, require_tokens

        tasks = [
            task
            for suite in self.suites.values()
            if isinstance(suite, HarnessSuite)
            for task in suite.tasks
        ]
        yield partial(require_tasks, tuple(tasks))
        asks = asks_through_chat(self.suites.values())
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
        """The corpora that `heldout` suites name; each must hold documents out."""
        wanted = sorted(
            {
                corpus
                for suite in self.suites.values()
                if isinstance(suite, HeldoutSuite)
                for corpus in suite.corpora
            }
        )
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
        """The knowledge probe of every `cloze` suite."""
        wanted = [key for key, suite in self.suites.items() if isinstance(suite, ClozeSuite)]
        return {key: self.probes[key] for key in sorted(wanted)}

    def _world(self) -> Stage:
        if self.world is None:
            raise ConfigError(
                f"evaluate:{self.variant} asks for probes of the world, but there is no world",
                remedy="Add `world` to the experiment, or take the suite out.",
            )
        return self.world
