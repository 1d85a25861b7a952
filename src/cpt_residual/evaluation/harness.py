"""The one lm-eval adapter: a model directory and suites in, typed rows out.

Every score is computed by lm-eval: our own probes are tasks of it too, generated as yaml files
that name the functions of their suite. What lm-eval returns as nested dicts ends here. Neither its
response cache (keyed by the prompt alone) nor its `delta=` (adds tied tensors twice) is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from cpt_residual.config.suite_tasks import Aggregate, SuiteInputs
from cpt_residual.config.suites import SuiteBase
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.answers import HarnessAnswer
from cpt_residual.evaluation.finite import NotFiniteError
from cpt_residual.evaluation.lazy_import import lazy_import
from cpt_residual.evaluation.model import ModelSettings, PromptCounter, RecordingLM
from cpt_residual.evaluation.results import EvaluationResult, Facts, ResultRow, Sample
from cpt_residual.evaluation.scorer import harness_version, own_scorer_sha256
from cpt_residual.evaluation.silence_lm_eval import silence_lm_eval
from cpt_residual.evaluation.statistics import mean_stderr
from cpt_residual.evaluation.stock import StockTask, find_stock_task, load_tasks
from cpt_residual.evaluation.taskfiles import write_task_files
from cpt_residual.evaluation.template import ChatSide
from cpt_residual.modeling.token_side import token_map_hash

Progress = Callable[[int, int, str], None]


def _no_progress(done: int, total: int, unit: str) -> None:
    del done, total, unit


_BOOTSTRAP_DRAWS = 100  # of stock metrics without an analytic error (perplexity, f1)
_COUNTS = {
    "num_bytes": "bits_per_byte",
    "num_tokens": "token_perplexity",
    "num_words": "word_perplexity",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs(SuiteInputs):
    """Files an evaluation reads, beside what its suites ask about. template_dir: the model whose
    chat template all are asked through; base_dir: the family's base, at whose EOS ids every variant
    may stop as well."""

    template_dir: Path
    base_dir: Path | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate. scratch: a folder for the generated task files; include_paths: folders
    with further lm-eval task files."""

    scratch: Path
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    batch_size: int = 32
    include_paths: tuple[Path, ...] = ()


def evaluate(
    model_dir: Path,
    suites: Mapping[str, SuiteBase],
    *,
    variant: str,
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    progress: Progress = _no_progress,
) -> EvaluationResult:
    """Score one variant on all suites.

    Everything that can be missing (tasks, nltk data, data sets, probe files) is looked for before
    the model is loaded. Deterministic: greedy decoding, seeded, nothing kept between calls.
    """
    with silence_lm_eval():
        asks = any(suite.asks_through_chat() for suite in suites.values())
        chat = ChatSide.of(inputs.template_dir, asks=asks)
        run, counter = _Run(variant, settings, chat.turn_end), PromptCounter(progress)
        chat.check_tokenizer_of(model_dir)
        plans = [*_own_plans(suites, inputs, chat, settings), *_stock_plans(suites, settings)]
        _check_unique([name for plan in plans for name in plan.suites])
        model_settings = ModelSettings(
            stop_token_ids=chat.stop_token_ids(inputs.base_dir),
            precision=settings.precision,
            device=settings.device,
            batch_size=settings.batch_size,
        )
        lm = RecordingLM(model_dir, chat, model_settings, counter)
        counter.expect(sum(plan.num_documents() for plan in plans))
        for plan in plans:
            try:
                run.execute(plan, lm)
            except NotFiniteError as found:
                raise found.told(variant, plan.suite_of(found.task), model_dir) from None
    return EvaluationResult(
        variant=variant,
        rows=run.checked_rows(),
        samples=tuple(run.samples),
        facts=_facts(chat, model_settings, settings, run),
    )


# --- what is to be run ---------------------------------------------------------------------------
@dataclass(frozen=True)
class _Plan:
    """One call of lm-eval: loaded tasks that share few-shot number, limit and template use.

    suites, scorers: the suite that asks for a task, and the hash of the code that scores it; tasks
    of a group belong to the group's. own: the metrics of our own tasks; empty for a stock task."""

    tasks: Sequence[Any]
    manager: Any
    suites: Mapping[str, str]
    scorers: Mapping[str, str]
    own: Mapping[str, Mapping[str, Aggregate]] = field(default_factory=dict[str, Any])
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = True

    def suite_of(self, task: str) -> str:
        return self.suites.get(task) or ", ".join(dict.fromkeys(self.suites.values()))

    def scorer_of(self, task: str) -> str:
        return self.scorers.get(task) or ", ".join(self.scorers.values())

    def num_documents(self) -> int:
        """Documents of single tasks; those of groups are counted when they come."""
        sizes = [len(task.eval_docs) for task in self.tasks if hasattr(task, "eval_docs")]
        return sum(min(size, self.limit or size) for size in sizes)


def _own_plans(
    suites: Mapping[str, SuiteBase],
    inputs: EvaluationInputs,
    chat: ChatSide,
    settings: EvaluationSettings,
) -> Iterator[_Plan]:
    """At most two plans: all own tasks of all suites that are asked through the chat template, and
    all that are asked as they stand."""
    asked = [
        (file, key)
        for key, suite in suites.items()
        for file in suite.task_files(key, inputs, chat.turn_end)
    ]
    if not asked:
        return
    _check_unique([file.task for file, _ in asked])
    folder = write_task_files([file for file, _ in asked], settings.scratch / "tasks")
    manager = lazy_import("lm_eval.tasks").TaskManager(
        include_path=str(folder), include_defaults=False
    )
    scorers = {key: own_scorer_sha256([suite]) for key, suite in suites.items()}
    for through_chat in (True, False):
        mine = [(file, key) for file, key in asked if file.chat == through_chat]
        if mine:
            yield _Plan(
                tasks=load_tasks(manager, [file.task for file, _ in mine]),
                manager=manager,
                suites={file.task: key for file, key in mine},
                scorers={file.task: scorers[key] for file, key in mine},
                own={file.task: file.metrics for file, _ in mine},
                chat=through_chat and chat.template is not None,  # held-out text needs none
            )


def _stock_plans(suites: Mapping[str, SuiteBase], settings: EvaluationSettings) -> list[_Plan]:
    found = [
        (key, find_stock_task(task, settings.include_paths))
        for key, suite in suites.items()
        for task in suite.stock_tasks()
    ]
    return [_stock_plan(task, key) for key, task in found]


def _stock_plan(found: StockTask, suite: str) -> _Plan:
    wanted = found.wanted
    return _Plan(
        tasks=load_tasks(found.manager, [wanted.task], found.data_sets),
        manager=found.manager,
        suites={wanted.task: suite},
        scorers={wanted.task: found.scorer_sha256},
        num_fewshot=wanted.num_fewshot,
        limit=wanted.limit,
        chat=wanted.chat,
    )


def _check_unique(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(
            "A task is in the suites more than once.",
            problems=twice,
            remedy="Its rows could not be told apart. Name each task in one suite.",
        )


# --- running -------------------------------------------------------------------------------------
@dataclass
class _Run:
    """Rows, samples and facts of one evaluation, as they come."""

    variant: str
    settings: EvaluationSettings
    turn_end: str
    rows: list[ResultRow] = field(default_factory=list[ResultRow])
    samples: list[Sample] = field(default_factory=list[Sample])
    task_facts: dict[str, Facts] = field(default_factory=dict[str, Facts])
    groups: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def execute(self, plan: _Plan, lm: RecordingLM) -> None:
        """One call of lm-eval, turned into rows and samples."""
        lm.rolling = "document" if plan.own else "stock"
        seed = self.settings.seed
        raw = lazy_import("lm_eval").simple_evaluate(
            model=lm,
            tasks=[*plan.tasks],
            task_manager=plan.manager,
            num_fewshot=plan.num_fewshot,
            limit=plan.limit,
            apply_chat_template=plan.chat,
            fewshot_as_multiturn=plan.chat,
            bootstrap_iters=0 if plan.own else _BOOTSTRAP_DRAWS,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        self._take(plan, HarnessAnswer(cast("Mapping[str, Any]", raw), plan.own))

    def _take(self, plan: _Plan, answer: HarnessAnswer) -> None:
        samples = answer.samples()
        self.groups.update(answer.groups(samples))
        self.rows += answer.rows(self.variant, samples, seed=self.settings.seed)
        for task, found in samples.items():
            if plan.chat and not plan.own and any(sample.stop_reason for sample in found):
                self.rows.append(self._closed_share(task, found))
            self.samples += found
            self.task_facts[task] = _task_facts(plan, answer, task, found)

    def _closed_share(self, task: str, samples: Sequence[Sample]) -> ResultRow:
        """Of a stock task, whose own metrics do not ask why a response ended."""
        closed = [float(sample.stop_reason == self.turn_end) for sample in samples]
        share = sum(closed) / len(closed)
        return ResultRow(
            self.variant, task, "closed_share", share, mean_stderr(closed), len(closed)
        )

    def checked_rows(self) -> tuple[ResultRow, ...]:
        """All rows; a score that is no number is an error."""
        odd = [row for row in self.rows if not math.isfinite(row.value)]
        if odd or not self.rows:
            raise EvaluationError(
                f"Variant {self.variant}: some scores are not numbers.",
                problems=[f"{row.task}, {row.metric}: {row.value} (n={row.n})" for row in odd]
                or ["no scores at all"],
                remedy="The weights are damaged (look for NaN in the training loss), or a task has "
                "no documents.",
            )
        return tuple(self.rows)


def _task_facts(plan: _Plan, answer: HarnessAnswer, task: str, samples: Sequence[Sample]) -> Facts:
    facts: dict[str, Any] = {
        "chat": plan.chat and bool(samples[0].response is not None or not plan.own),
        "limit": plan.limit,
        "num_documents": len(samples),
        "num_fewshot": answer.num_fewshot(task),
        "scorer_sha256": plan.scorer_of(task),
        "version": answer.version(task),
    }
    for count, metric in _COUNTS.items():
        if metric in samples[0].metrics:
            pairs = [cast("list[float]", sample.metrics[metric]) for sample in samples]
            facts[count] = int(sum(pair[1] for pair in pairs))
    return facts


def _facts(chat: ChatSide, model: ModelSettings, settings: EvaluationSettings, run: _Run) -> Facts:
    tokenizer = chat.tokenizer
    return {
        **chat.template_facts,
        "decoding": "greedy",
        **({"groups": run.groups} if run.groups else {}),
        "lm_eval": harness_version(),
        "precision": settings.precision,
        "seed": settings.seed,
        "stop_tokens": [str(tokenizer.convert_ids_to_tokens(i)) for i in model.stop_token_ids],
        "tasks": run.task_facts,
        "token_map_sha256": token_map_hash(tokenizer),
        "torch": version("torch").split("+")[0],
        "transformers": version("transformers"),
        "turn_end": chat.turn_end,
    }
