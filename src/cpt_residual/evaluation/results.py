"""Typed results of one variant, and the three files they are published in.

`results.json`: rows {variant, task, metric, value, stderr, n}. `samples.jsonl`: one row per task
and document. `evaluation.json`: what the numbers came from. All are byte-deterministic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

SampleValue = float | list[float]
"""A metric of one document: a number; per check for `inst_level_*`; and for held-out text the pair
[log likelihood in nats, number of bytes, tokens or words]."""

Facts = Mapping[str, Any]
"""JSON values: where the numbers came from."""


@dataclass(frozen=True)
class ResultRow:
    """One score. `n`: documents (prompts) behind it; `stderr` is None where it is not known."""

    variant: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Sample:
    """One document of one task. `stop_reason`, `num_tokens`, `response`: of generated text;
    None for likelihood tasks (held-out text has the number of scored tokens)."""

    task: str
    doc_id: int
    prompt_sha256: str
    metrics: Mapping[str, SampleValue]
    stop_reason: str | None
    num_tokens: int | None
    response: str | None


@dataclass(frozen=True)
class EvaluationResult:
    """All scores of one variant. `facts`: template, scorer, versions, settings."""

    variant: str
    rows: tuple[ResultRow, ...]
    samples: tuple[Sample, ...]
    facts: Facts

    def value(self, task: str, metric: str) -> float:
        """The score of one metric; KeyError when there is none."""
        for row in self.rows:
            if (row.task, row.metric) == (task, metric):
                return row.value
        raise KeyError(f"{self.variant}: no metric {metric!r} of task {task!r}")


def write_evaluation(result: EvaluationResult, folder: Path) -> None:
    """Write `results.json`, `samples.jsonl` and `evaluation.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "[\n" + ",\n".join(_json(asdict(row)) for row in result.rows) + "\n]\n"
    (folder / "results.json").write_text(rows, encoding="utf-8")
    samples = "".join(_json(asdict(sample)) + "\n" for sample in result.samples)
    (folder / "samples.jsonl").write_text(samples, encoding="utf-8")
    facts = json.dumps(
        {"variant": result.variant, **result.facts}, sort_keys=True, indent=1, ensure_ascii=False
    )
    (folder / "evaluation.json").write_text(facts + "\n", encoding="utf-8")


def read_results(folder: Path) -> tuple[ResultRow, ...]:
    """The rows of a published evaluation."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return tuple(ResultRow(**_known(ResultRow, row)) for row in rows)


def read_samples(folder: Path, *, tasks: Iterable[str] | None = None) -> tuple[Sample, ...]:
    """The samples of a published evaluation, of `tasks` or of all."""
    wanted = None if tasks is None else frozenset(tasks)
    with (folder / "samples.jsonl").open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return tuple(
        Sample(**_known(Sample, row)) for row in found if wanted is None or row["task"] in wanted
    )


def _known(kind: type[Any], row: object) -> dict[str, Any]:
    values = cast("dict[str, Any]", row)
    return {field.name: values[field.name] for field in fields(kind)}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
