"""What scores mean: the measures that suites declare, so that no name needs to be interpreted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from cpt_residual.base_model import Frozen

MeasureRole = Literal[
    "instruction_following",
    "new_knowledge",
    "instructed_knowledge",
    "new_text",
    "old_knowledge",
    "general_text",
    "reasoning",
    "other",
]
"""What a measure is evidence of. new: what CPT teaches; instructed_knowledge: an instruction obeyed
and new knowledge right in one answer; text: likelihood of held-out documents."""

MEASURE_ROLES: tuple[str, ...] = get_args(MeasureRole)

Unit = Literal["share", "bits_per_byte", "perplexity", "score"]

Aspect = Literal["headline", "loose", "open", "closed", "instruction_level", "perplexity"]
"""`headline` stands for its task in tests and verdict; the others are shown beside it. open: the
answer need not close its turn; closed: share of answers that do."""


class Measure(Frozen):
    """One declared measure: a metric of a task, its words, unit, direction and chance level.

    `or_metrics`: what stands in where an evaluation wrote no `metric` (another version of a task);
    `num_prompts`: as far as it is known before the evaluation;
    `paired`: the score is a mean over prompts, so that variants can be tested prompt by prompt.
    """

    task: str
    metric: str
    label: str
    short: str
    role: MeasureRole = "other"
    aspect: Aspect = "headline"
    unit: Unit = "share"
    higher_is_better: bool = True
    chance: float | None = None
    paired: bool = True
    or_metrics: tuple[str, ...] = ()
    num_prompts: int | None = None

    @property
    def name(self) -> str:
        """Unique within an experiment, e.g. `ifeval/prompt_level_strict_acc`."""
        return f"{self.task}/{self.metric}"

    @property
    def is_share(self) -> bool:
        """Shown in percent."""
        return self.unit == "share"

    def among(self, written: Collection[str]) -> Measure | None:
        """This measure with the metric that was `written`; None when none of its metrics was."""
        found = next((name for name in (self.metric, *self.or_metrics) if name in written), None)
        if found is None or found == self.metric:
            return None if found is None else self
        others = tuple(name for name in (self.metric, *self.or_metrics) if name != found)
        return self.model_copy(update={"metric": found, "chance": None, "or_metrics": others})

    def is_named(self, names: Collection[str]) -> bool:
        """Whether one of its metrics, the declared one included, is among `names`."""
        return any(f"{self.task}/{each}" in names for each in (self.metric, *self.or_metrics))


_FOLLOWING: tuple[tuple[str, str, str, Aspect], ...] = (
    ("prompt_level_strict_acc", "strict", "IF strict", "headline"),
    ("prompt_level_loose_acc", "loose", "IF loose", "loose"),
    ("prompt_level_strict_acc_open", "strict, turn closing not required", "IF open", "open"),
    ("inst_level_strict_acc", "instruction level, strict", "IF inst.", "instruction_level"),
)


def instruction_measures(task: str, num_prompts: int | None = None) -> tuple[Measure, ...]:
    """Of prompts with verifiable instructions, at prompt level unless said."""
    following = [
        Measure(
            task=task,
            metric=metric,
            label=f"instruction following, {words}",
            short=short,
            role="instruction_following",
            aspect=aspect,
            paired=aspect in ("headline", "open"),
            num_prompts=num_prompts,
        )
        for metric, words, short, aspect in _FOLLOWING
    ]
    closed = Measure(
        task=task,
        metric="closed_share",
        label="share of answers that close the turn",
        short="closed",
        role="instruction_following",
        aspect="closed",
        paired=False,
    )
    return (*following, closed)
