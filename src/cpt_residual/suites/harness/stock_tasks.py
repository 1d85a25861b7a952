"""What lm-eval's stock tasks measure, and how much they ask.

Numbers of questions are those of the public data sets; tokens are averages of a BPE vocabulary of
128,000 entries, rounded; responses of instruct models are assumed to be of the stated length (a
variant that does not stop takes up to the task's limit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cpt_residual.config.measures import Measure, MeasureRole, Unit, instruction_measures
from cpt_residual.config.suite_tasks import HarnessTask, Workload

_HEADLINES = (
    "acc_norm",
    "acc",
    "exact_match,strict-match",
    "exact_match",
    "exact_match,flexible-extract",
    "pass@1",
    "f1",
    "em",
)
"""Of a task that is not in the table: the first of these that lm-eval reports."""

_PERPLEXITIES: Mapping[str, Unit] = MappingProxyType(
    {
        "perplexity": "perplexity",
        "word_perplexity": "perplexity",
        "byte_perplexity": "perplexity",
        "bits_per_byte": "bits_per_byte",
    }
)
"""Metrics of any task that are no share of right answers: the lower, the better."""


@dataclass(frozen=True)
class StockTask:
    """One task of lm-eval. metric: its headline; questions: documents of the split that is scored;
    sequences: how many are scored for each (its choices); tokens: of one question with its answer,
    and of one example of the few-shot prompt; new_tokens: generated for each; subtasks: of a group,
    each of which has its own limit."""

    metric: str
    role: MeasureRole
    label: str
    questions: int
    sequences: int
    tokens: int
    new_tokens: int = 0
    chance: float | None = None
    unit: Unit = "share"
    subtasks: int = 1


STOCK_TASKS: Mapping[str, StockTask] = MappingProxyType(
    {
        "ifeval": StockTask(
            "prompt_level_strict_acc", "instruction_following", "IFEval", 541, 1, 60, 400
        ),
        # four choices of one token after one prompt: one pass
        "mmlu": StockTask("acc", "old_knowledge", "MMLU", 14_042, 1, 110, chance=0.25, subtasks=57),
        "mmlu_pro": StockTask(
            "exact_match,custom-extract",
            "old_knowledge",
            "MMLU-Pro",
            12_032,
            1,
            350,
            300,
            subtasks=14,
        ),
        "gsm8k": StockTask("exact_match,strict-match", "reasoning", "GSM8K", 1_319, 1, 160, 130),
        "gsm8k_cot": StockTask(
            "exact_match,strict-match", "reasoning", "GSM8K CoT", 1_319, 1, 160, 130
        ),
        "arc_easy": StockTask("acc_norm", "old_knowledge", "ARC easy", 2_376, 4, 35, chance=0.25),
        "arc_challenge": StockTask(
            "acc_norm", "old_knowledge", "ARC challenge", 1_172, 4, 40, chance=0.25
        ),
        "hellaswag": StockTask("acc_norm", "reasoning", "HellaSwag", 10_042, 4, 90, chance=0.25),
        "winogrande": StockTask("acc", "reasoning", "WinoGrande", 1_267, 2, 30, chance=0.5),
        "piqa": StockTask("acc_norm", "reasoning", "PIQA", 1_838, 2, 40, chance=0.5),
        "boolq": StockTask("acc", "reasoning", "BoolQ", 3_270, 2, 150, chance=0.5),
        "openbookqa": StockTask("acc_norm", "old_knowledge", "OpenBookQA", 500, 4, 25, chance=0.25),
        "truthfulqa_mc1": StockTask("acc", "other", "TruthfulQA MC1", 817, 5, 40),
        "truthfulqa_mc2": StockTask("acc", "other", "TruthfulQA MC2", 817, 7, 40),
        "triviaqa": StockTask(
            "exact_match,remove_whitespace", "old_knowledge", "TriviaQA", 17_944, 1, 25, 16
        ),
        "lambada_openai": StockTask("acc", "general_text", "LAMBADA", 5_153, 1, 90),
        "sciq": StockTask("acc_norm", "old_knowledge", "SciQ", 1_000, 4, 120, chance=0.25),
        "bbh": StockTask("exact_match", "reasoning", "BBH", 6_511, 1, 300, 200),
        "humaneval": StockTask("pass@1", "reasoning", "HumanEval", 164, 1, 150, 250),
        "mbpp": StockTask("pass_at_1", "reasoning", "MBPP", 500, 1, 150, 150),
        "wikitext": StockTask(
            "bits_per_byte", "general_text", "WikiText", 62, 1, 4_600, unit="bits_per_byte"
        ),
    }
)


def stock_measures(task: HarnessTask) -> tuple[Measure, ...]:
    """What a stock task measures; what the configuration states comes before the table."""
    known = _known(task)
    metric = task.metric or known.metric
    num_prompts = _questions(task) if task.task in STOCK_TASKS else None
    if metric == "prompt_level_strict_acc" and task.role in (None, "instruction_following"):
        return instruction_measures(task.task, num_prompts)
    label = task.label or known.label
    other: Unit = _PERPLEXITIES.get(metric.partition(",")[0], "share")
    unit = known.unit if metric == known.metric else other
    headline = Measure(
        task=task.task,
        metric=metric,
        or_metrics=() if task.metric else tuple(name for name in _HEADLINES if name != metric),
        label=label,
        short=label,
        role=task.role or known.role,
        unit=unit,
        higher_is_better=unit == "share",
        paired=unit == "share",
        num_prompts=num_prompts,
        chance=known.chance if metric == known.metric else None,
    )
    return (headline,)


def stock_workload(task: HarnessTask) -> Workload:
    """What a stock task asks, for the plan."""
    known = _known(task)
    tokens = known.tokens * (1 + (task.num_fewshot or 0))
    return Workload(_questions(task) * known.sequences, tokens, known.new_tokens)


def _questions(task: HarnessTask) -> int:
    known = _known(task)
    return min(known.questions, (task.limit or known.questions) * known.subtasks)


def _known(task: HarnessTask) -> StockTask:
    unknown = StockTask(_HEADLINES[0], "other", task.task, 1_000, 4, 100)
    return STOCK_TASKS.get(task.task, unknown)
