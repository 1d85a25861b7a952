"""Which result row answers which question, whatever suites an experiment ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import ReportFacts

MeasureKey = Literal[
    "strict",
    "loose",
    "open",
    "instructions",
    "closed",
    "new_facts",
    "obeyed_and_right",
    "cloze",
    "new_strict",
    "old_facts",
    "bits_new",
    "bits_general",
    "perplexity_new",
]


@dataclass(frozen=True)
class Measure:
    """A score the report knows by name. `share`: shown in percent; else in its own unit."""

    key: MeasureKey
    label: str
    short: str
    share: bool
    higher_is_better: bool = True


MEASURES: tuple[Measure, ...] = (
    Measure("strict", "instruction following, prompt level, strict", "IF strict", share=True),
    Measure("loose", "instruction following, prompt level, loose", "IF loose", share=True),
    Measure(
        "open", "instruction following, strict, turn closing not required", "IF open", share=True
    ),
    Measure(
        "instructions", "instruction following, instruction level, strict", "IF inst.", share=True
    ),
    Measure("closed", "share of answers that close the turn", "closed", share=True),
    Measure("new_facts", "new facts, asked in chat", "new facts", share=True),
    Measure(
        "obeyed_and_right", "instruction obeyed and new fact right", "obeyed & right", share=True
    ),
    Measure("cloze", "rare spans of the new text, cloze questions", "cloze", share=True),
    Measure("new_strict", "instruction following about new persons, strict", "new IF", share=True),
    Measure("old_facts", "old facts, asked in chat", "old facts", share=True),
    Measure(
        "bits_new",
        "bits per byte, new domain",
        "bits/byte new",
        share=False,
        higher_is_better=False,
    ),
    Measure(
        "bits_general",
        "bits per byte, general text",
        "bits/byte general",
        share=False,
        higher_is_better=False,
    ),
    Measure(
        "perplexity_new", "perplexity, new domain", "ppl new", share=False, higher_is_better=False
    ),
)
BY_KEY: dict[MeasureKey, Measure] = {measure.key: measure for measure in MEASURES}
_NEW_INSTRUCTIONS = "new_instructions"
_STRICT = "prompt_level_strict_acc"
_OF_SPANS = "target_bits_per_byte"  # the knowledge probe alone has it
_HEADLINES = (
    "acc_norm",
    "acc",
    "accuracy",
    "exact_match",
    "exact_match,strict-match",
    "exact_match,flexible-extract",
    "pass@1",
    "f1",
    _STRICT,
)


class Scores:
    """Look-up of rows by variant and measure. Rows may come in any order."""

    def __init__(self, rows: Iterable[ResultRow], *, new_corpus: str | None) -> None:
        self._rows = {(row.variant, row.task, row.metric): row for row in rows}
        tasks = sorted({(task, metric) for _, task, metric in self._rows})
        self.sources: dict[MeasureKey, tuple[str, str]] = _sources(tasks, new_corpus)

    @classmethod
    def of(cls, facts: ReportFacts) -> Scores:
        return cls(facts.rows, new_corpus=facts.new_corpus)

    def row(self, variant: str | None, key: MeasureKey) -> ResultRow | None:
        source = self.sources.get(key)
        return None if source is None or variant is None else self._rows.get((variant, *source))

    def value(self, variant: str | None, key: MeasureKey) -> float | None:
        row = self.row(variant, key)
        return None if row is None else row.value

    def types(self) -> tuple[str, ...]:
        """Instruction types scored by the instruction-following task, single ones before pairs."""
        source = self.sources.get("strict")
        if source is None:
            return ()
        labels = {m for _, t, m in self._rows if t == source[0] and m.startswith("type/")}
        names = [label.removeprefix("type/") for label in labels]
        return tuple(sorted(names, key=lambda name: (name.count("+"), name)))

    def type_row(self, variant: str, label: str) -> ResultRow | None:
        task = self.sources["strict"][0]
        return self._rows.get((variant, task, f"type/{label}"))

    def other_tasks(self) -> tuple[tuple[str, str], ...]:
        """(task, metric) of the headline score of every task that no measure names."""
        known = {task for task, _ in self.sources.values()}
        metrics: dict[str, set[str]] = {}
        for _, task, metric in self._rows:
            if task not in known:
                metrics.setdefault(task, set()).add(metric)
        found: list[tuple[str, str]] = []
        for task in sorted(metrics):
            named = [name for name in _HEADLINES if name in metrics[task]]
            rest = sorted(name for name in metrics[task] if not name.startswith("type/"))
            if named or rest:
                found.append((task, (named or rest)[0]))
        return tuple(found)

    def cloze_chance(self) -> float | None:
        """Accuracy of a guess at the cloze questions; None when none were asked."""
        task = self.sources.get("cloze", ("", ""))[0]
        found = (row.value for (_, t, m), row in self._rows.items() if (t, m) == (task, "chance"))
        return next(found, None)

    def other(self, variant: str, task: str, metric: str) -> ResultRow | None:
        return self._rows.get((variant, task, metric))


def _sources(
    tasks: list[tuple[str, str]], new_corpus: str | None
) -> dict[MeasureKey, tuple[str, str]]:
    present = set(tasks)
    found: dict[MeasureKey, tuple[str, str]] = {}

    def offer(key: MeasureKey, task: str | None, metric: str) -> None:
        if task is not None and key not in found and (task, metric) in present:
            found[key] = (task, metric)

    following = _following_task(tasks)
    offer("strict", following, _STRICT)
    offer("loose", following, "prompt_level_loose_acc")
    offer("open", following, f"{_STRICT}_open")
    offer("instructions", following, "inst_level_strict_acc")
    offer("closed", following, "closed_share")
    offer("new_facts", "new_facts", "accuracy")
    offer("old_facts", "old_facts", "accuracy")
    offer("obeyed_and_right", _NEW_INSTRUCTIONS, "obeyed_and_right")
    offer("new_strict", _NEW_INSTRUCTIONS, _STRICT)
    offer("cloze", next((task for task, metric in tasks if metric == _OF_SPANS), None), "accuracy")
    new_task, general_task = _heldout_tasks(tasks, new_corpus)
    offer("bits_new", new_task, "bits_per_byte")
    offer("bits_general", general_task, "bits_per_byte")
    offer("perplexity_new", new_task, "token_perplexity")
    offer("perplexity_new", new_task, "word_perplexity")
    return found


def _following_task(tasks: list[tuple[str, str]]) -> str | None:
    strict = [task for task, metric in tasks if metric == _STRICT and task != _NEW_INSTRUCTIONS]
    for preferred in ("instruction_following", "ifeval"):
        if preferred in strict:
            return preferred
    return strict[0] if strict else None


def _heldout_tasks(
    tasks: list[tuple[str, str]], new_corpus: str | None
) -> tuple[str | None, str | None]:
    heldout = [task for task, metric in tasks if metric == "bits_per_byte"]
    if new_corpus is not None:
        new = next((task for task in heldout if task.endswith(new_corpus)), None)
    else:
        new = next((task for task in heldout if "new" in task), None)
    rest = [task for task in heldout if task != new]
    general = next((task for task in rest if task.endswith("general")), rest[0] if rest else None)
    return new, general
