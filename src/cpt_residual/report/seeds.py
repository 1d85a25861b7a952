"""One report over several seeds of an experiment: mean, spread, pooled contrasts, every seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cpt_residual.config.measures import Measure
from cpt_residual.errors import ArtifactError
from cpt_residual.report.format import MISSING, cell, points
from cpt_residual.report.markdown import render
from cpt_residual.report.markdown_table import markdown_table
from cpt_residual.report.style import COLOURS, INK, Figure, new_figure, write_png
from cpt_residual.report.tables import contrasts_markdown, goal_mark, goal_text, heading
from cpt_residual.report.verdict import judge
from cpt_residual.results.contrasts import Contrast, Family, make_families
from cpt_residual.results.document import Results, read_results
from cpt_residual.results.goals import Goal
from cpt_residual.results.outcomes import PROMPTS_FILE, joined, read_prompts
from cpt_residual.results.paired import SeedSummary
from cpt_residual.results.table import COLUMNS, ResultTable, Score, csv_text

_UNDECIDED = {"reading": "undecided"}


def write_seed_report(
    folders: Iterable[Path], out: Path, *, unfinished: Sequence[int] = ()
) -> Path:
    """report.md, results.csv (long, with seeds), summary.csv and figures/seeds.png in `out`.

    `unfinished`: seeds that were asked for and have no report; they are named, and they count.

    Same reports, same bytes; the order of `folders` does not count. Raises ArtifactError when the
    reports are of different experiments or a seed comes twice.
    """
    found = sorted(
        ((read_results(folder), folder) for folder in folders), key=lambda each: each[0].seed
    )
    reports = [results for results, _ in found]
    _require_one_experiment(reports)
    outcomes = joined(read_prompts(at / PROMPTS_FILE) for _, at in found)
    first = reports[0]
    pooled = make_families(
        first.declared, first.kinds, first.table.measures, outcomes, margin=first.margin
    )
    families = tuple(_agreeing(family, reports) for family in pooled)
    out.mkdir(parents=True, exist_ok=True)
    drawn = write_png(out / "figures" / "seeds.png", lambda: seeds_figure(reports))
    text = _markdown(reports, families, drawn=drawn, unfinished=unfinished)
    rows = ([r.seed, *row.model_dump().values()] for r in reports for row in r.table.rows)
    for name, content in (
        ("results.csv", csv_text(["seed", *COLUMNS], rows)),
        ("summary.csv", _summary_csv(reports)),
        ("report.md", text),
    ):
        (out / name).write_text(content, encoding="utf-8", newline="\n")
    return out / "report.md"


def _agreeing(family: Family, reports: Sequence[Results]) -> Family:
    """The family with better and lost only where every seed has a difference of that sign."""
    contrasts: list[Contrast] = []
    for each in family.contrasts:
        measure, gaps = reports[0].table.named(each.measure), _gaps(each, reports)
        ahead = (each.reading == "better") == measure.higher_is_better
        agree = all(gap > 0 if ahead else gap < 0 for gap in gaps)
        changes = {} if agree or each.reading not in ("better", "lost") else _UNDECIDED
        contrasts.append(each.model_copy(update=changes))
    return family.model_copy(update={"contrasts": tuple(contrasts)})


def _gaps(contrast: Contrast, reports: Sequence[Results]) -> list[float]:
    """The difference seed by seed."""
    return [
        left - right
        for r in reports
        if (left := r.table.value(contrast.variant, r.table.named(contrast.measure))) is not None
        and (right := r.table.value(contrast.against, r.table.named(contrast.measure))) is not None
    ]


def seeds_figure(reports: Sequence[Results]) -> Figure | None:
    """Strict instruction following: a point per seed, a bar at the mean."""
    measure = reports[0].table.measure("instruction_following")
    rows = [(v, s) for v in reports[0].variants if (s := _summary(reports, v.name, measure))]
    if not rows:
        return None
    figure = new_figure(8.6, 1.4 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for place, (variant, summary) in enumerate(rows):
        axes.plot([100 * summary.mean] * 2, [place - 0.32, place + 0.32], color=INK, linewidth=2)
        for index, value in enumerate(summary.values):
            shift = 0.36 * ((index + 0.5) / len(summary.values) - 0.5)
            look = {"color": COLOURS[variant.kind], "markersize": 6, "zorder": 3}
            axes.plot(100 * value, place + shift, marker="o", **look)
        axes.text(122, place, _mean_text(summary, share=True), va="center", ha="right")
    axes.set_yticks(range(len(rows)), [variant.label for variant, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -1.1)
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
    reports: Sequence[Results],
    families: tuple[Family, ...],
    *,
    drawn: bool,
    unfinished: Sequence[int],
) -> str:
    first = reports[0]
    rows = tuple(_mean_rows(reports))
    table = ResultTable(rows=rows, measures=first.table.measures)
    pooled = first.model_copy(update={"table": table, "families": families, "geometry": None})
    verdict = judge(pooled, num_seeds=len(reports))
    asked = [family.question or family.name for family in families]
    return render(
        "seeds.md.j2",
        r=first,
        seeds=", ".join(str(report.seed) for report in reports),
        outcomes=_outcomes(reports, unfinished),
        verdict=verdict,
        goals=_goals_table(reports, unfinished) if first.goals else "",
        comparison=_comparison_table(reports),
        drawn=drawn,
        per_seed=_per_seed_table(reports),
        families=[
            (question, contrasts_markdown(pooled, family), _gaps_table(pooled, family, reports))
            for question, family in zip(asked, families, strict=True)
        ],
        each=reports,
    )


def _mean_rows(reports: Sequence[Results]) -> Iterable[Score]:
    """The mean over seeds of every score that all of them have."""
    for row in reports[0].table.rows:
        found = [r.table.of_metric(row.variant, row.task, row.metric) for r in reports]
        values = [each.value for each in found if each is not None]
        if len(values) == len(reports):
            yield row.model_copy(update={"value": SeedSummary(tuple(values)).mean})


def _outcomes(reports: Sequence[Results], unfinished: Sequence[int]) -> str:
    """How many seeds came out how, e.g. `4 of 5 kept, 1 of 5 not finished (seed 4).`"""
    outcomes = [report.verdict.outcome for report in reports if report.verdict is not None]
    total = len(reports) + len(unfinished)
    kinds = sorted(set(outcomes), key=lambda kind: (-outcomes.count(kind), kind))
    counted = [f"{outcomes.count(kind)} of {total} {kind.replace('_', ' ')}" for kind in kinds]
    if unfinished:
        seeds = ", ".join(map(str, unfinished))
        counted.append(f"{len(unfinished)} of {total} not finished (seed {seeds})")
    return ", ".join(counted) + "."


def _goals_table(reports: Sequence[Results], unfinished: Sequence[int]) -> str:
    body: list[list[str]] = []
    for goals in zip(*(report.goals for report in reports), strict=True):
        met = sum(goal.passed is True for goal in goals)
        values = [goal.value for goal in goals if goal.value is not None]
        mean = SeedSummary(tuple(values)).mean if len(values) == len(goals) else None
        body.append(
            [
                goals[0].statement,
                *(_goal_cell(goal) for goal in goals),
                *("not finished" for _ in unfinished),
                goal_text(mean, goals[0]),
                f"{met} of {len(goals) + len(unfinished)}",
            ]
        )
    seeds = [*(report.seed for report in reports), *unfinished]
    return markdown_table(["goal", *(f"seed {seed}" for seed in seeds), "mean", "met"], body)


def _goal_cell(goal: Goal) -> str:
    return MISSING if goal.passed is None else f"{goal_text(goal.value, goal)} {goal_mark(goal)}"


def _comparison_table(reports: Sequence[Results]) -> str:
    measures = reports[0].table.columns()
    body = [
        [v.label, *(_mean_cell(_summary(reports, v.name, m), share=m.is_share) for m in measures)]
        for v in reports[0].variants
    ]
    return markdown_table(["variant", *map(heading, measures)], body)


def _per_seed_table(reports: Sequence[Results]) -> str:
    body: list[list[str]] = []
    measure = reports[0].table.measure("instruction_following")
    for variant in reports[0].variants:
        summary = _summary(reports, variant.name, measure)
        if summary is not None:
            each = [cell(value, share=True) for value in summary.values]
            low, high = (cell(end(summary.values), share=True) for end in (min, max))
            spread = [_mean_text(summary, share=True), f"{low} … {high}"]
            body.append([variant.label, *each, *spread])
    header = ["variant", *(f"seed {report.seed}" for report in reports), "mean ± std", "range"]
    return markdown_table(header, body) if body else ""


def _gaps_table(pooled: Results, family: Family, reports: Sequence[Results]) -> str:
    """Every contrast seed by seed."""
    body = [
        [
            pooled.label(each.variant),
            pooled.table.named(each.measure).short,
            *(points(gap, signed=True) for gap in _gaps(each, reports)),
            each.reading,
        ]
        for each in family.contrasts
    ]
    seeds = [f"seed {report.seed}" for report in reports]
    return markdown_table(["variant", "measure", *seeds, "reading"], body)


def _summary(
    reports: Sequence[Results], variant: str, measure: Measure | None
) -> SeedSummary | None:
    values = [report.table.value(variant, measure) for report in reports]
    present = tuple(value for value in values if value is not None)
    return SeedSummary(present) if present and len(present) == len(values) else None


def _mean_cell(summary: SeedSummary | None, *, share: bool) -> str:
    return MISSING if summary is None else _mean_text(summary, share=share)


def _mean_text(summary: SeedSummary, *, share: bool) -> str:
    mean = cell(summary.mean, share=share)
    return mean if summary.std is None else f"{mean} ± {cell(summary.std, share=share)}"


def _summary_csv(reports: Sequence[Results]) -> str:
    """Per variant, task and metric: mean, sample std, min, max over the seeds that have it."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for report in reports:
        for row in report.table.rows:
            values.setdefault((row.variant, row.task, row.metric), []).append(row.value)
    header = ["variant", "task", "metric", "mean", "std", "min", "max", "seeds"]
    summaries = ((key, SeedSummary(tuple(found))) for key, found in values.items())
    return csv_text(
        header,
        (
            [*key, s.mean, s.std, min(s.values), max(s.values), len(s.values)]
            for key, s in summaries
        ),
    )


def _require_one_experiment(reports: Sequence[Results]) -> None:
    if not reports:
        raise ArtifactError("no reports to aggregate", remedy="Give at least one report folder.")
    names = sorted({report.experiment for report in reports})
    goals = {tuple(goal.statement for goal in report.goals) for report in reports}
    seeds = [report.seed for report in reports]
    problems = [f"experiments {', '.join(names)}"] if len(names) > 1 else []
    problems += ["different goals"] if len(goals) > 1 else []
    same = [({v.name for v in r.variants}, {m.name for m in r.table.measures}) for r in reports]
    problems += [
        f"seed {seed} has other variants or measures than seed {seeds[0]}"
        for seed, each in zip(seeds, same, strict=True)
        if each != same[0]
    ]
    problems += [f"seed {seed} twice" for seed in sorted(set(seeds)) if seeds.count(seed) > 1]
    if problems:
        raise ArtifactError(
            "these reports are not the seeds of one experiment",
            problems=problems,
            remedy="Aggregate one report per seed of one experiment.",
        )
