"""What every variant scored on every prompt: the evidence behind paired tests."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.measures import Measure
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.results import Sample, read_samples
from cpt_residual.results.table import ResultTable, csv_text

PROMPTS_FILE = "prompts.csv"
_COLUMNS = ("measure", "prompt", "variant", "value")
_TOLERANCE = 1e-6

ByPrompt = Mapping[str, float]


@dataclass(frozen=True)
class Outcomes:
    """Per-prompt scores: measure name -> variant -> prompt -> value."""

    values: Mapping[str, Mapping[str, ByPrompt]]

    def pair(self, measure: str, first: str, second: str) -> tuple[list[float], list[float]] | None:
        """Scores of two variants on the same prompts, in the same order; None where one has none.

        Raises EvaluationError when they were asked different prompts.
        """
        left, right = (self.values.get(measure, {}).get(name) for name in (first, second))
        if not left or not right:
            return None
        if left.keys() != right.keys():
            odd = sorted(left.keys() ^ right.keys())
            raise EvaluationError(
                f"{measure}: {first} and {second} were not asked the same prompts.",
                problems=[f"prompt {prompt}" for prompt in odd[:5]],
                remedy="A paired test would compare unlike things. Score both with the same suite.",
            )
        return [left[key] for key in sorted(left)], [right[key] for key in sorted(right)]

    def csv(self) -> str:
        """Columns measure,prompt,variant,value."""
        return csv_text(
            _COLUMNS,
            (
                (measure, prompt, variant, f"{value:.10g}")
                for measure, variants in self.values.items()
                for variant, prompts in variants.items()
                for prompt, value in sorted(prompts.items())
            ),
        )


def read_outcomes(folders: Mapping[str, Path], table: ResultTable) -> Outcomes:
    """Of all paired measures, from the samples of every variant's evaluation."""
    values: dict[str, dict[str, ByPrompt]] = {}
    for variant, folder in folders.items():
        samples, members = read_samples(folder), _groups(folder)
        for measure in table.measures:
            score = table.value(variant, measure)
            if measure.paired and score is not None:
                tasks = members.get(measure.task, [measure.task])
                found = dict(_scores(samples, tasks, measure))
                if found and abs(math.fsum(found.values()) / len(found) - score) < _TOLERANCE:
                    values.setdefault(measure.name, {})[variant] = found
    return Outcomes(values)


def read_prompts(path: Path) -> Outcomes:
    """What `Outcomes.csv` wrote."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            variants = values.setdefault(row["measure"], {})
            variants.setdefault(row["variant"], {})[row["prompt"]] = float(row["value"])
    return Outcomes(values)


def joined(outcomes: Iterable[Outcomes]) -> Outcomes:
    """The prompts of several seeds together. A prompt that several seeds ask (the prompts of stock
    tasks are the same in all) counts once, with its mean score: seeds are no further prompts."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for each in outcomes:
        for measure, variants in each.values.items():
            for variant, prompts in variants.items():
                target = found.setdefault(measure, {}).setdefault(variant, {})
                for prompt, value in prompts.items():
                    target.setdefault(prompt, []).append(value)
    return Outcomes(
        {
            measure: {
                variant: {prompt: statistics.fmean(values) for prompt, values in prompts.items()}
                for variant, prompts in variants.items()
            }
            for measure, variants in found.items()
        }
    )


def _scores(
    samples: Sequence[Sample], tasks: Sequence[str], measure: Measure
) -> Iterator[tuple[str, float]]:
    wanted, single = frozenset(tasks), len(tasks) == 1
    for sample in samples:
        value = sample.metrics.get(measure.metric)
        if sample.task in wanted and isinstance(value, float | int):
            task = "" if single else f"{sample.task}:"
            yield f"{task}{sample.doc_id}:{sample.prompt_sha256[:12]}", float(value)


def _groups(folder: Path) -> Mapping[str, list[str]]:
    """Group -> its tasks, as the evaluation wrote them."""
    facts = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return facts.get("groups", {})
