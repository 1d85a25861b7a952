"""The long table of scores, and what its measures mean: report, terminal and W&B read this one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from cpt_residual.base_model import Frozen
from cpt_residual.config.measures import MEASURE_ROLES, Aspect, Measure, MeasureRole

COLUMNS = ("variant", "suite", "task", "metric", "value", "stderr", "n")
_SHOWN: tuple[Aspect, ...] = ("headline", "loose", "open", "closed")


class Score(Frozen):
    """One score of one variant. `suite` is empty for tasks inside a group; `n`: prompts or
    documents behind it; `stderr` is None where it is not known."""

    variant: str
    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


class ResultTable(Frozen):
    """All scores of all variants, and the declared measures among them.

    Rows are in the order of the variants, then by task and metric; measures in order of role."""

    rows: tuple[Score, ...]
    measures: tuple[Measure, ...]

    @classmethod
    def of(
        cls, rows: Iterable[Score], declared: Iterable[Measure], variants: Sequence[str]
    ) -> ResultTable:
        """The table of `variants`, with those of the declared measures that were written."""
        place = {name: index for index, name in enumerate(variants)}
        ordered = sorted(rows, key=lambda r: (place[r.variant], r.task, r.metric))
        written: dict[str, set[str]] = {}
        for row in ordered:
            written.setdefault(row.task, set()).add(row.metric)
        found = (measure.among(written.get(measure.task, ())) for measure in declared)
        measures = {measure.name: measure for measure in found if measure is not None}
        by_role = sorted(measures.values(), key=lambda m: MEASURE_ROLES.index(m.role))
        return cls(rows=tuple(ordered), measures=tuple(by_role))

    def row(self, variant: str | None, measure: Measure | None) -> Score | None:
        """The score of a variant, None where it was not measured (or not evaluated)."""
        if variant is None or measure is None:
            return None
        return self._index.get((variant, measure.task, measure.metric))

    def value(self, variant: str | None, measure: Measure | None) -> float | None:
        row = self.row(variant, measure)
        return None if row is None else row.value

    def measure(self, role: MeasureRole, aspect: Aspect = "headline") -> Measure | None:
        """The first measure of a role; None when no suite has one."""
        headline = next(
            (m for m in self.measures if m.role == role and m.aspect == "headline"), None
        )
        return headline if aspect == "headline" else self.beside(headline, aspect)

    def beside(self, measure: Measure | None, aspect: Aspect) -> Measure | None:
        """Another aspect of a measure's task."""
        if measure is None:
            return None
        same = (m for m in self.measures if m.task == measure.task and m.aspect == aspect)
        return next(same, None)

    def named(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def columns(self) -> tuple[Measure, ...]:
        """What a comparison of all variants shows."""
        return tuple(m for m in self.measures if m.aspect in _SHOWN)

    def types(self, measure: Measure) -> tuple[str, ...]:
        """Metrics `type/...` of a measure's task, single types before pairs."""
        names = {r.metric for r in self.rows if r.task == measure.task}
        types = (name for name in names if name.startswith("type/"))
        return tuple(sorted(types, key=lambda name: (name.count("+"), name)))

    def of_metric(self, variant: str, task: str, metric: str) -> Score | None:
        return self._index.get((variant, task, metric))

    def csv(self) -> str:
        """Numbers as Python's shortest exact text."""
        return csv_text(COLUMNS, (list(row.model_dump().values()) for row in self.rows))

    @cached_property
    def _index(self) -> Mapping[tuple[str, str, str], Score]:
        return {(row.variant, row.task, row.metric): row for row in self.rows}


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file with Unix line ends; None is an empty cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
