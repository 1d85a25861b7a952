"""lm-eval's answer, a nest of untyped dicts, as typed rows and samples. Nothing else reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cpt_residual.config.suite_tasks import Aggregate
from cpt_residual.evaluation.aggregation import TRANSFORMS
from cpt_residual.evaluation.responses import Response, ScoredText
from cpt_residual.evaluation.results import ResultRow, Sample, SampleValue
from cpt_residual.evaluation.statistics import mean_stderr, ratio_stderr

_STOCK_AGGREGATES: Mapping[str, Aggregate] = {
    "bits_per_byte": "bits_per_byte",
    "word_perplexity": "perplexity",
    "inst_level_strict_acc": "mean_of_checks",
    "inst_level_loose_acc": "mean_of_checks",
}
"""Metrics of stock tasks whose values per document are lists."""


@dataclass(frozen=True)
class HarnessAnswer:
    """What `lm_eval.simple_evaluate` returned. `aggregates`: by task, those of our own metrics."""

    raw: Mapping[str, Any]
    aggregates: Mapping[str, Mapping[str, Aggregate]] = field(default_factory=dict[str, Any])

    def samples(self) -> dict[str, tuple[Sample, ...]]:
        """Per task, one sample per document, in document order; filters are merged into it."""
        return {
            task: tuple(_samples(task, cast("Sequence[Mapping[str, Any]]", logged)))
            for task, logged in self.raw["samples"].items()
        }

    def rows(
        self, variant: str, samples: Mapping[str, Sequence[Sample]], *, seed: int
    ) -> list[ResultRow]:
        """All scores of all tasks and groups. The standard error is lm-eval's analytic one, or ours
        over prompts where lm-eval has none (instruction level, likelihoods)."""
        return [
            self._row(variant, task, key, samples.get(task, ()), seed=seed)
            for task, results in self.raw["results"].items()
            for key, value in results.items()
            if _is_score(key, value)
        ]

    def groups(self, samples: Mapping[str, object]) -> dict[str, list[str]]:
        """Group -> the single tasks below it that have `samples`."""
        children: Mapping[str, Sequence[str]] = self.raw.get("group_subtasks", {})

        def leaves(name: str) -> list[str]:
            if name in samples:
                return [name]
            return [leaf for child in children.get(name, ()) for leaf in leaves(child)]

        found = {name: leaves(name) for name in children if name not in samples}
        return {name: sorted(tasks) for name, tasks in found.items() if tasks}

    def num_fewshot(self, task: str) -> int | None:
        return cast("int | None", self.raw["n-shot"].get(task))

    def version(self, task: str) -> str:
        return str(self.raw["versions"].get(task))

    def _row(
        self, variant: str, task: str, key: str, samples: Sequence[Sample], *, seed: int
    ) -> ResultRow:
        metric, results = _metric(*_split(key)), self.raw["results"][task]
        values = [sample.metrics[metric] for sample in samples if metric in sample.metrics]
        name, filter_name = _split(key)
        stderr = results.get(f"{name}_stderr,{filter_name}")
        if not _is_number(stderr):
            aggregate = self.aggregates.get(task, _STOCK_AGGREGATES).get(metric, "mean")
            stderr = _stderr(aggregate, values, float(results[key]), seed=seed)
        return ResultRow(
            variant=variant,
            task=task,
            metric=metric,
            value=float(results[key]),
            stderr=None if stderr is None else float(stderr),
            n=len(values) or self._num_documents(task),
        )

    def _num_documents(self, task: str) -> int:
        counts, children = self.raw["n-samples"], self.raw.get("group_subtasks", {})
        if task in counts:
            return int(counts[task]["effective"])
        return sum(self._num_documents(child) for child in children.get(task, ()))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_score(key: str, value: object) -> bool:
    return "," in key and not _split(key)[0].endswith("_stderr") and _is_number(value)


def _split(key: str) -> tuple[str, str]:
    metric, _, filter_name = key.rpartition(",")
    return metric, filter_name


def _metric(metric: str, filter_name: str) -> str:
    """The metric's name; with the filter in lm-eval's way when a task has several."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _stderr(
    aggregate: Aggregate, values: Sequence[SampleValue], score: float, *, seed: int
) -> float | None:
    lists = [value for value in values if isinstance(value, list)]
    if not lists:
        plain = [value for value in values if not isinstance(value, list)]
        is_mean = bool(plain) and abs(sum(plain) / len(plain) - score) < 1e-9
        return mean_stderr(plain) if is_mean else None
    if aggregate in TRANSFORMS:
        pairs = [(-value[0], value[1]) for value in lists]
        return ratio_stderr(pairs, TRANSFORMS[aggregate], seed=seed)
    if aggregate == "mean_of_checks":
        return ratio_stderr([(sum(value), float(len(value))) for value in lists], seed=seed)
    return None


def _samples(task: str, logged: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    by_document: dict[int, list[Mapping[str, Any]]] = {}
    for entry in logged:
        by_document.setdefault(int(entry["doc_id"]), []).append(entry)
    for doc_id in sorted(by_document):
        entries = by_document[doc_id]
        answer: object = entries[0]["resps"][0][0]
        response = answer if isinstance(answer, Response) else None
        counted = answer if isinstance(answer, (Response, ScoredText)) else None
        yield Sample(
            task=task,
            doc_id=doc_id,
            prompt_sha256=str(entries[0]["prompt_hash"]),
            metrics=dict(sorted(_sample_metrics(entries))),
            stop_reason=response.stop_reason if response is not None else None,
            num_tokens=counted.num_tokens if counted is not None else None,
            response=str(response) if response is not None else None,
        )


def _sample_metrics(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, SampleValue]]:
    for entry in entries:
        for name in entry["metrics"]:
            value: object = entry[name]
            key = _metric(str(name), str(entry["filter"]))
            if isinstance(value, (bool, int, float)):
                yield key, float(value)
            elif isinstance(value, (list, tuple)):
                items = cast("Sequence[object]", value)
                if all(isinstance(item, (bool, int, float)) for item in items):
                    yield key, [float(cast("float", item)) for item in items]
