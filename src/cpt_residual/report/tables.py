"""Tables of a report: CSV, Markdown, and the one for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from rich.table import Table

from cpt_residual.evaluation.results import ResultRow
from cpt_residual.evaluation.statistics import recovery
from cpt_residual.report.facts import Difference, ReportFacts
from cpt_residual.report.format import (
    MINUS,
    MISSING,
    cell,
    flops_text,
    p_text,
    percent,
    points,
    ratio_text,
)
from cpt_residual.report.goals import Goal
from cpt_residual.report.markdown_table import markdown_table
from cpt_residual.report.measures import BY_KEY, Measure, MeasureKey, Scores

CSV_COLUMNS = ("variant", "task", "metric", "value", "stderr", "n")
COMPARISON_KEYS: tuple[MeasureKey, ...] = (
    "strict",
    "loose",
    "open",
    "closed",
    "new_facts",
    "obeyed_and_right",
    "cloze",
    "old_facts",
    "bits_new",
    "bits_general",
)

_IMPORTANCE: tuple[MeasureKey, ...] = (
    "strict",
    "new_facts",
    "obeyed_and_right",
    "cloze",
    "bits_new",
    "open",
    "loose",
    "closed",
    "old_facts",
    "bits_general",
)
"""`COMPARISON_KEYS` by what a narrow terminal shows first."""

_GAP = 2


def ordered_rows(facts: ReportFacts) -> tuple[ResultRow, ...]:
    """Rows by variant (order of the experiment), task, metric: independent of the input order."""
    place = {variant.name: index for index, variant in enumerate(facts.variants)}
    return tuple(
        sorted(
            facts.rows,
            key=lambda r: (place.get(r.variant, len(place)), r.variant, r.task, r.metric),
        )
    )


def results_csv(rows: Iterable[ResultRow]) -> str:
    """Columns variant,task,metric,value,stderr,n; numbers as Python's shortest exact text."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        stderr = "" if row.stderr is None else repr(row.stderr)
        writer.writerow([row.variant, row.task, row.metric, repr(row.value), stderr, row.n])
    return out.getvalue()


def prompts_csv(facts: ReportFacts) -> str:
    """Per-prompt values behind the paired tests: measure,task,metric,prompt,variant,value."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["measure", "task", "metric", "prompt", "variant", "value"])
    for scores in facts.prompts:
        for prompt in sorted(scores.values):
            for variant, value in sorted(scores.values[prompt].items()):
                writer.writerow(
                    [scores.measure, scores.task, scores.metric, prompt, variant, f"{value:g}"]
                )
    return out.getvalue()


def comparison_markdown(facts: ReportFacts, scores: Scores) -> str:
    """One line per variant, one column per known measure that was scored."""
    measures = comparison_measures(scores)
    header = ["variant", *(f"{m.short}{' %' if m.share else ''}" for m in measures)]
    return markdown_table(header, _comparison((v.name for v in facts.variants), scores))


def comparison_measures(scores: Scores) -> list[Measure]:
    return [BY_KEY[key] for key in COMPARISON_KEYS if key in scores.sources]


def other_tasks_markdown(facts: ReportFacts, scores: Scores) -> str | None:
    """Headline score of every task that no known measure covers; None when there is none."""
    tasks = scores.other_tasks()
    if not tasks:
        return None
    body: list[list[str]] = []
    for task, metric in tasks:
        cells = [scores.other(v.name, task, metric) for v in facts.variants]
        body.append(
            [f"{task} {metric}", *(cell(r.value if r else None, share=False) for r in cells)]
        )
    return markdown_table(["task", *(v.name for v in facts.variants)], body)


def paired_markdown(differences: Iterable[Difference]) -> str:
    """Paired tests: difference in points with its interval and p value."""
    body = [
        [
            f"{d.first} {MINUS} {d.second}",
            d.measure,
            points(d.value, signed=True),
            f"{points(d.low, signed=True)} … {points(d.high, signed=True)}",
            p_text(d.p_value),
            str(d.n),
        ]
        for d in differences
    ]
    return markdown_table(["pair", "measure", "points", "95 % CI", "p", "prompts"], body)


def goals_markdown(goals: Iterable[Goal]) -> str:
    """What the experiment was set to reach, and whether it did."""
    body = [[goal.statement, goal.value_text, goal.mark] for goal in goals]
    return markdown_table(["goal", "reached", "met"], body)


def change_markdown(facts: ReportFacts, scores: Scores) -> str | None:
    """Recovery and forgetting of what the instruct model could do before CPT.

    Forgetting is instruct - x; for recovery see `evaluation.statistics`.
    """
    roles, body = facts.roles, list[list[str]]()
    for key in ("strict", "loose", "open", "old_facts"):
        instruct = scores.value(roles.instruct, key)
        merged = scores.value(roles.merged, key)
        if instruct is None or merged is None:
            continue
        floor = scores.value(roles.base_cpt, key)
        naive = scores.value(roles.instruct_cpt, key)
        share = (
            None if floor is None else recovery(merged=merged, base_cpt=floor, instruct=instruct)
        )
        lost = MISSING if naive is None else points(instruct - naive, signed=True)
        body.append(
            [
                BY_KEY[key].short,
                percent(share),
                lost,
                points(instruct - merged, signed=True),
            ]
        )
    if not body:
        return None
    naive_name = roles.instruct_cpt or "instruct_cpt"
    return markdown_table(
        ["measure", "recovery", f"forgetting of {naive_name}", f"forgetting of {roles.merged}"],
        body,
    )


def cost_markdown(facts: ReportFacts, scores: Scores) -> str:
    """FLOPs of each route beyond the released pair, against the residual's, and what it reaches."""
    own = next((v.flops for v in facts.variants if v.name == facts.roles.merged), None)
    body: list[list[str]] = []
    for variant in facts.variants:
        if not variant.route or variant.kind in ("alpha", "control", "donor"):
            continue
        ratio = ratio_text(variant.flops / own) if own and variant.flops else MISSING
        body.append(
            [
                variant.name,
                " + ".join(step.name for step in variant.route),
                f"{sum(step.tokens for step in variant.route):,}",
                flops_text(variant.flops),
                ratio,
                "yes" if variant.needs_instruction_data else "no",
                percent(scores.value(variant.name, "strict")),
            ]
        )
    header = [
        "variant",
        "route",
        "tokens",
        "FLOPs",
        "of residual route",
        "instruction data",
        "IF strict",
    ]
    return markdown_table(header, body)


def restoring_cost(facts: ReportFacts) -> tuple[float, float, str] | None:
    """(FLOPs of residual + apply, FLOPs of instruction tuning, variant tuned): the price of
    bringing instruction following back once the base is trained. None without an sft route."""
    merged = facts.variant(facts.roles.merged)
    tuned = next((v for v in facts.variants if v.kind == "sft" and v.route), None)
    if merged is None or not merged.route or tuned is None or not tuned.route:
        return None
    cheap = sum(s.flops for s in merged.route if s.name.startswith(("residual:", "apply:")))
    dear = sum(s.flops for s in tuned.route if s.name.startswith("sft:"))
    return (cheap, dear, tuned.name) if cheap and dear else None


def training_markdown(facts: ReportFacts) -> str:
    body = [
        [
            f"{t.stage}:{t.model}",
            f"{t.tokens:,}",
            f"{t.steps:,}",
            f"{t.final_loss:.4f}",
            flops_text(t.flops),
            percent(t.lost_share),
        ]
        for t in facts.trainings
    ]
    return markdown_table(
        ["training", "tokens", "steps", "last loss", "FLOPs", "lost to rounding"], body
    )


def comparison_table(
    names: Iterable[str], scores: Scores, *, width: int
) -> tuple[Table, list[str]]:
    """The comparison of the named variants for a terminal of `width` columns, and the headings of
    the measures that found no room. What is shown is whole; the most important measure always is.
    """
    lines = _comparison(names, scores)
    measures = comparison_measures(scores)
    shown = _measures_that_fit(measures, lines, width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.title, table.title_justify = "Comparison (percent unless said)", "left"
    rooms = [_column_width(measure, lines, measures) for measure in shown]
    longest = max((len(line[0]) for line in lines), default=0)
    left = max(1, width - sum(rooms) - _GAP * len(rooms))
    table.add_column("variant", vertical="bottom", overflow="fold", width=min(longest, left))
    for measure, room in zip(shown, rooms, strict=True):
        table.add_column(measure.short, justify="right", vertical="bottom", width=room)
    places = [0, *(1 + measures.index(measure) for measure in shown)]
    for line in lines:
        table.add_row(*(line[place] for place in places))
    return table, [measure.short for measure in measures if measure not in shown]


def _measures_that_fit(
    measures: Sequence[Measure], lines: Sequence[Sequence[str]], width: int
) -> list[Measure]:
    """As many as fit beside the names, the most important first; in the order of `measures`."""
    left = width - max((len(line[0]) for line in lines), default=0)
    chosen: list[Measure] = []
    for measure in sorted(measures, key=lambda m: _IMPORTANCE.index(m.key)):
        left -= _GAP + _column_width(measure, lines, measures)
        if left < 0 and chosen:
            break
        chosen.append(measure)
    return [measure for measure in measures if measure in chosen]


def _column_width(
    measure: Measure, lines: Sequence[Sequence[str]], measures: Sequence[Measure]
) -> int:
    """The longest cell or word of the heading, which breaks between words."""
    place = 1 + list(measures).index(measure)
    texts = [*measure.short.split(), *(line[place] for line in lines)]
    return max(len(text) for text in texts)


def comparison_text(names: Iterable[str], scores: Scores) -> str:
    """The same as plain text, for logs and pipes."""
    header = ["variant", *(m.short for m in comparison_measures(scores))]
    lines = [header, *_comparison(names, scores)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w)
            for i, (t, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _comparison(names: Iterable[str], scores: Scores) -> list[list[str]]:
    """Name and cells of every variant."""
    measures = comparison_measures(scores)
    return [
        [name, *(cell(scores.value(name, m.key), share=m.share) for m in measures)]
        for name in names
    ]
