"""What lm-eval's stock tasks measure: headline metric, role, chance level, number of documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cpt_residual.config.measures import Measure, MeasureRole, instruction_measures

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


@dataclass(frozen=True)
class StockTask:
    """One task of lm-eval. `num_documents`: those of the split that lm-eval scores;
    `num_subtasks`: of a group, each of which has the limit of its own."""

    metric: str
    role: MeasureRole
    label: str
    num_documents: int
    chance: float | None = None
    num_subtasks: int = 1


STOCK_TASKS: Mapping[str, StockTask] = MappingProxyType(
    {
        "ifeval": StockTask("prompt_level_strict_acc", "instruction_following", "IFEval", 541),
        "mmlu": StockTask("acc", "old_knowledge", "MMLU", 14_042, 0.25, 57),
        "mmlu_pro": StockTask(
            "exact_match,custom-extract", "old_knowledge", "MMLU-Pro", 12_032, num_subtasks=14
        ),
        "gsm8k": StockTask("exact_match,strict-match", "reasoning", "GSM8K", 1_319),
        "gsm8k_cot": StockTask("exact_match,strict-match", "reasoning", "GSM8K CoT", 1_319),
        "arc_easy": StockTask("acc_norm", "old_knowledge", "ARC easy", 2_376, 0.25),
        "arc_challenge": StockTask("acc_norm", "old_knowledge", "ARC challenge", 1_172, 0.25),
        "hellaswag": StockTask("acc_norm", "reasoning", "HellaSwag", 10_042, 0.25),
        "winogrande": StockTask("acc", "reasoning", "WinoGrande", 1_267, 0.5),
        "piqa": StockTask("acc_norm", "reasoning", "PIQA", 1_838, 0.5),
        "boolq": StockTask("acc", "reasoning", "BoolQ", 3_270, 0.5),
        "openbookqa": StockTask("acc_norm", "old_knowledge", "OpenBookQA", 500, 0.25),
        "truthfulqa_mc1": StockTask("acc", "other", "TruthfulQA MC1", 817),
        "truthfulqa_mc2": StockTask("acc", "other", "TruthfulQA MC2", 817),
        "triviaqa": StockTask("exact_match,remove_whitespace", "old_knowledge", "TriviaQA", 17_944),
        "lambada_openai": StockTask("acc", "general_text", "LAMBADA", 5_153),
    }
)


def stock_measures(
    task: str,
    *,
    metric: str | None,
    role: MeasureRole | None,
    label: str | None,
    limit: int | None = None,
) -> tuple[Measure, ...]:
    """What a stock task measures; what the configuration states comes before the table."""
    known = STOCK_TASKS.get(task)
    if known is None:
        known = StockTask(_HEADLINES[0], "other", task, 0)
    chosen = metric or known.metric
    num_prompts = known.num_documents or None
    if num_prompts is not None and limit is not None:
        num_prompts = min(num_prompts, limit * known.num_subtasks)
    if chosen == "prompt_level_strict_acc" and role in (None, "instruction_following"):
        return instruction_measures(task, num_prompts)
    name = label or known.label
    headline = Measure(
        task=task,
        metric=chosen,
        or_metrics=() if metric else tuple(name for name in _HEADLINES if name != chosen),
        label=name,
        short=name,
        role=role or known.role,
        num_prompts=num_prompts,
        chance=known.chance if chosen == known.metric else None,
    )
    return (headline,)
