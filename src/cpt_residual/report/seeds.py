"""One report over several seeds of an experiment: mean, spread, and every seed as it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from cpt_residual.errors import ArtifactError
from cpt_residual.evaluation.statistics import SeedSummary
from cpt_residual.report.facts import Difference
from cpt_residual.report.format import MINUS, MISSING, cell, p_text, points
from cpt_residual.report.goals import Goal, goal_number
from cpt_residual.report.markdown_table import markdown_table
from cpt_residual.report.measures import BY_KEY, MeasureKey
from cpt_residual.report.pairs import paired_difference
from cpt_residual.report.published import PAIRS_MEASURE, SeedReport, read_report
from cpt_residual.report.style import COLOURS, INK, Figure, new_figure, write_png
from cpt_residual.report.tables import COMPARISON_KEYS


def write_seed_report(
    folders: Iterable[Path], out: Path, *, unfinished: Sequence[int] = ()
) -> Path:
    """report.md, results.csv (long, with seeds), summary.csv and figures/seeds.png in `out`.

    `unfinished`: seeds that were asked for and have no report; they are named, and they count.

    Same reports, same bytes; the order of `folders` does not count. Raises ArtifactError when the
    reports are of different experiments or a seed comes twice.
    """
    reports = sorted((read_report(folder) for folder in folders), key=lambda report: report.seed)
    _require_one_experiment(reports)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "results.csv", _long_csv(reports))
    _write(out / "summary.csv", _summary_csv(reports))
    drawn = write_png(out / "figures" / "seeds.png", lambda: seeds_figure(reports))
    _write(
        out / "report.md", _markdown(reports, pooled(reports), drawn=drawn, unfinished=unfinished)
    )
    return out / "report.md"


def pooled(reports: Sequence[SeedReport]) -> tuple[Difference, ...]:
    """Paired tests over the prompts of all seeds together (strict instruction following).

    It answers for prompts given these seeds; the spread between seeds is shown beside it.
    """
    found: list[Difference] = []
    for first, second in reports[0].pairs:
        left: list[float] = []
        right: list[float] = []
        for report in reports:
            for prompt in sorted(report.prompts):
                scores = report.prompts[prompt]
                if first in scores and second in scores:
                    left.append(scores[first])
                    right.append(scores[second])
        if left:
            found.append(paired_difference((first, second), PAIRS_MEASURE, (left, right)))
    return tuple(found)


def seeds_figure(reports: Sequence[SeedReport]) -> Figure | None:
    """Strict instruction following: a point per seed, a bar at the mean."""
    names = [name for name in reports[0].kinds if _summary(reports, name, "strict") is not None]
    if not names:
        return None
    figure = new_figure(8.6, 1.4 + 0.42 * len(names))
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        summary = _summary(reports, name, "strict")
        assert summary is not None
        colour = COLOURS[reports[0].kinds[name]]
        axes.plot([100 * summary.mean] * 2, [place - 0.32, place + 0.32], color=INK, linewidth=2)
        for index, value in enumerate(summary.values):
            shift = 0.36 * ((index + 0.5) / len(summary.values) - 0.5)
            axes.plot(100 * value, place + shift, marker="o", color=colour, markersize=6, zorder=3)
        axes.text(122, place, _mean_text(summary, share=True), va="center", ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -1.1)
    axes.text(122, -0.8, "mean ± std", va="center", ha="right", fontsize=9)
    axes.set_xlim(-2, 123)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(
        "prompts answered as instructed (strict), %: a point per seed, a bar at the mean"
    )
    axes.set_title(f"Instruction following over {len(reports)} seeds")
    return figure


def _markdown(
    reports: Sequence[SeedReport],
    tests: Sequence[Difference],
    *,
    drawn: bool,
    unfinished: Sequence[int],
) -> str:
    first = reports[0]
    seeds = ", ".join(str(report.seed) for report in reports)
    parts = [
        f"# {first.experiment} over seeds {seeds}",
        f"**Question.** {first.question}",
        f"**Seeds.** {_outcomes(reports, unfinished)}",
        *(["## Goals", _goals_table(reports, unfinished)] if first.goals else []),
        "## Comparison (mean ± sample standard deviation over seeds)",
        _comparison_table(reports),
        *(["![Strict instruction following per seed.](figures/seeds.png)"] if drawn else []),
        "Minimum and maximum of every score are in `summary.csv`, all scores in `results.csv`.",
        "## Strict instruction following per seed",
        _per_seed_table(reports),
    ]
    if tests:
        parts += [
            "## Paired tests, prompts of all seeds together",
            _tests_table(reports, tests),
            (
                "The interval (95 %) and p are over prompts, given these seeds; the last two "
                "columns show the same difference seed by seed."
            ),
        ]
    parts += [
        "## Verdict of each seed",
        "\n".join(f"* seed {r.seed}: {r.headline}" for r in reports),
    ]
    return "\n\n".join(parts) + "\n"


def _outcomes(reports: Sequence[SeedReport], unfinished: Sequence[int]) -> str:
    """How many seeds came out how, e.g. `4 of 5 mostly kept, 1 of 5 not finished (seed 4).`"""
    outcomes = [report.outcome for report in reports]
    total = len(outcomes) + len(unfinished)
    kinds = sorted(set(outcomes), key=lambda kind: (-outcomes.count(kind), kind))
    counted = [f"{outcomes.count(kind)} of {total} {kind.replace('_', ' ')}" for kind in kinds]
    if unfinished:
        seeds = ", ".join(map(str, unfinished))
        counted.append(f"{len(unfinished)} of {total} not finished (seed {seeds})")
    return ", ".join(counted) + "."


def _goals_table(reports: Sequence[SeedReport], unfinished: Sequence[int]) -> str:
    body: list[list[str]] = []
    for goals in zip(*(report.goals for report in reports), strict=True):
        met = sum(goal.passed is True for goal in goals)
        body.append(
            [
                goals[0].statement,
                *(_goal_cell(goal) for goal in goals),
                *("not finished" for _ in unfinished),
                _mean_goal(goals),
                f"{met} of {len(goals) + len(unfinished)}",
            ]
        )
    seeds = [*(report.seed for report in reports), *unfinished]
    header = ["goal", *(f"seed {seed}" for seed in seeds), "mean", "met"]
    return markdown_table(header, body)


def _goal_cell(goal: Goal) -> str:
    return f"{goal.value_text} {goal.mark}" if goal.passed is not None else MISSING


def _mean_goal(goals: Sequence[Goal]) -> str:
    values = [goal.value for goal in goals if goal.value is not None]
    if len(values) < len(goals):
        return MISSING
    return goal_number(SeedSummary(tuple(values)).mean, share=goals[0].share)


def _comparison_table(reports: Sequence[SeedReport]) -> str:
    measures = [BY_KEY[key] for key in COMPARISON_KEYS if key in reports[0].scores.sources]
    body = [
        [name, *(_mean_cell(_summary(reports, name, m.key), share=m.share) for m in measures)]
        for name in reports[0].kinds
    ]
    header = ["variant", *(f"{m.short}{' %' if m.share else ''}" for m in measures)]
    return markdown_table(header, body)


def _per_seed_table(reports: Sequence[SeedReport]) -> str:
    body: list[list[str]] = []
    for name in reports[0].kinds:
        summary = _summary(reports, name, "strict")
        if summary is None:
            continue
        low, high = cell(min(summary.values), share=True), cell(max(summary.values), share=True)
        each = [cell(report.scores.value(name, "strict"), share=True) for report in reports]
        body.append([name, *each, _mean_text(summary, share=True), f"{low} … {high}"])
    header = ["variant", *(f"seed {report.seed}" for report in reports), "mean ± std", "range"]
    return markdown_table(header, body)


def _tests_table(reports: Sequence[SeedReport], tests: Sequence[Difference]) -> str:
    body: list[list[str]] = []
    for test in tests:
        gaps = [
            left - right
            for report in reports
            if (left := report.scores.value(test.first, "strict")) is not None
            and (right := report.scores.value(test.second, "strict")) is not None
        ]
        summary = SeedSummary(tuple(gaps))
        body.append(
            [
                f"{test.first} {MINUS} {test.second}",
                points(test.value, signed=True),
                f"{points(test.low, signed=True)} … {points(test.high, signed=True)}",
                p_text(test.p_value),
                str(test.n),
                _mean_text(summary, share=True),
                f"{points(min(gaps), signed=True)} … {points(max(gaps), signed=True)}",
            ]
        )
    header = ["pair", "points", "95 % CI", "p", "prompts", "over seeds", "range"]
    return markdown_table(header, body)


def _summary(reports: Sequence[SeedReport], variant: str, key: MeasureKey) -> SeedSummary | None:
    values = [report.scores.value(variant, key) for report in reports]
    present = tuple(value for value in values if value is not None)
    return SeedSummary(present) if present and len(present) == len(values) else None


def _mean_cell(summary: SeedSummary | None, *, share: bool) -> str:
    return MISSING if summary is None else _mean_text(summary, share=share)


def _mean_text(summary: SeedSummary, *, share: bool) -> str:
    mean = cell(summary.mean, share=share)
    return mean if summary.std is None else f"{mean} ± {cell(summary.std, share=share)}"


def _long_csv(reports: Sequence[SeedReport]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["seed", "variant", "task", "metric", "value", "stderr", "n"])
    for report in reports:
        for row in report.rows:
            stderr = "" if row.stderr is None else repr(row.stderr)
            numbers = [repr(row.value), stderr, row.n]
            writer.writerow([report.seed, row.variant, row.task, row.metric, *numbers])
    return out.getvalue()


def _summary_csv(reports: Sequence[SeedReport]) -> str:
    """Per variant, task and metric: mean, sample std, min, max over the seeds that have it."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for report in reports:
        for row in report.rows:
            values.setdefault((row.variant, row.task, row.metric), []).append(row.value)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "task", "metric", "mean", "std", "min", "max", "seeds"])
    for key, found in values.items():
        summary = SeedSummary(tuple(found))
        std = "" if summary.std is None else repr(summary.std)
        writer.writerow(
            [*key, repr(summary.mean), std, repr(min(found)), repr(max(found)), len(found)]
        )
    return out.getvalue()


def _require_one_experiment(reports: Sequence[SeedReport]) -> None:
    if not reports:
        raise ArtifactError("no reports to aggregate", remedy="Give at least one report folder.")
    names = sorted({report.experiment for report in reports})
    goals = {tuple(goal.statement for goal in report.goals) for report in reports}
    seeds = [report.seed for report in reports]
    problems = [f"experiments {', '.join(names)}"] if len(names) > 1 else []
    problems += ["different goals"] if len(goals) > 1 else []
    problems += [f"seed {seed} twice" for seed in sorted(set(seeds)) if seeds.count(seed) > 1]
    if problems:
        raise ArtifactError(
            "these reports are not the seeds of one experiment",
            problems=problems,
            remedy="Aggregate one report per seed of one experiment.",
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
