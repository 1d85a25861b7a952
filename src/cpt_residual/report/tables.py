"""Tables of a report: Markdown, and the comparison for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from cpt_residual.config.measures import MEASURE_ROLES, Measure
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
from cpt_residual.report.markdown_table import markdown_table
from cpt_residual.results.contrasts import Family
from cpt_residual.results.document import Results
from cpt_residual.results.goals import Goal
from cpt_residual.results.paired import recovery

_GAP = 2


def heading(measure: Measure) -> str:
    return f"{measure.short}{' %' if measure.is_share else ''}"


def comparison_markdown(results: Results) -> str:
    """One line per variant, one column per measure that was scored."""
    measures = results.table.columns()
    return markdown_table(["variant", *map(heading, measures)], _comparison(results))


def contrasts_markdown(results: Results, family: Family) -> str:
    """One family: differences in points, won and lost prompts, corrected p, reading."""
    body = [
        [
            f"{results.label(each.variant)} {MINUS} {results.label(each.against)}",
            results.table.named(each.measure).short,
            points(each.difference, signed=True),
            f"{points(each.low, signed=True)} … {points(each.high, signed=True)}",
            f"{each.won} / {each.lost} of {each.n}",
            p_text(each.p_value),
            p_text(each.p_holm),
            points(each.detectable),
            each.reading,
        ]
        for each in family.contrasts
    ]
    header = ["pair", "measure", "points", "interval", "won / lost", "p", "p (Holm)", "detectable"]
    return markdown_table([*header, "reading"], body)


def goals_markdown(goals: Iterable[Goal]) -> str:
    """What the experiment was set to reach, and whether it did."""
    body = [[goal.statement, goal_text(goal.value, goal), goal_mark(goal)] for goal in goals]
    return markdown_table(["goal", "reached", "met"], body)


def goal_text(value: float | None, goal: Goal) -> str:
    """Points with one decimal for shares, else two decimals."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f}" if goal.share else f"{value:.2f}"


def goal_mark(goal: Goal) -> str:
    return MISSING if goal.passed is None else "yes" if goal.passed else "NO"


def change_markdown(results: Results) -> str | None:
    """Recovery and forgetting of what the instruct model could do before CPT.

    Forgetting is instruct - x; for recovery see `results.paired`.
    """
    roles, table, body = results.roles, results.table, list[list[str]]()
    for measure in table.columns():
        if measure.role not in ("instruction_following", "old_knowledge", "reasoning"):
            continue
        instruct, merged, floor, naive = (
            table.value(name, measure)
            for name in (roles.instruct, roles.merged, roles.base_cpt, roles.instruct_cpt)
        )
        if instruct is None or merged is None or measure.aspect == "closed":
            continue
        share = None
        if floor is not None:
            share = recovery(merged=merged, base_cpt=floor, instruct=instruct)
        lost = MISSING if naive is None else points(instruct - naive, signed=True)
        body.append([measure.short, percent(share), lost, points(instruct - merged, signed=True)])
    if not body:
        return None
    forgetting = [f"forgetting of {roles.instruct_cpt or 'instruct_cpt'}"]
    header = ["measure", "recovery", *forgetting, f"forgetting of {roles.merged}"]
    return markdown_table(header, body)


def cost_markdown(results: Results) -> str:
    """FLOPs of each route beyond the released pair, against the residual's, and what it reaches."""
    merged = results.variant(results.roles.merged)
    own = merged.flops if merged is not None else None
    following = results.table.measure("instruction_following")
    body: list[list[str]] = []
    for variant in results.variants:
        if not variant.route or variant.kind in ("alpha", "method", "control", "donor"):
            continue
        ratio = ratio_text(variant.flops / own) if own and variant.flops else MISSING
        body.append(
            [
                variant.label,
                " + ".join(step.name for step in variant.route),
                f"{sum(step.tokens for step in variant.route):,}",
                flops_text(variant.flops),
                ratio,
                "yes" if variant.needs_instruction_data else "no",
                percent(results.table.value(variant.name, following)),
            ]
        )
    header = ["variant", "route", "tokens", "FLOPs", "of residual route", "instruction data"]
    return markdown_table([*header, "IF strict"], body)


def restoring_cost(results: Results) -> tuple[float, float, str] | None:
    """(FLOPs of residual + apply, FLOPs of instruction tuning, variant tuned): what it takes to
    bring instruction following back once the base is trained. None without an sft route."""
    merged = results.variant(results.roles.merged)
    tuned = next((v for v in results.variants if v.kind == "sft" and v.route), None)
    if merged is None or not merged.route or tuned is None or not tuned.route:
        return None
    cheap = sum(s.flops for s in merged.route if s.name.startswith(("residual:", "apply:")))
    dear = sum(s.flops for s in tuned.route if s.name.startswith("sft:"))
    return (cheap, dear, tuned.label) if cheap and dear else None


def training_markdown(results: Results) -> str:
    body = [
        [
            f"{t.stage}:{t.model}",
            f"{t.tokens:,}",
            f"{t.steps:,}",
            f"{t.final_loss:.4f}",
            flops_text(t.flops),
            percent(t.lost_share),
        ]
        for t in results.trainings
    ]
    header = ["training", "tokens", "steps", "final loss (mean of last 5 %)", "FLOPs"]
    return markdown_table([*header, "lost to rounding"], body)


def geometry_markdown(results: Results) -> str:
    if results.geometry is None:
        return ""
    named = [
        (f"{what} of {name}", cell(value, share=False))
        for what in ("drift", "cosine")
        for name, value in getattr(results.geometry, what).items()
    ]
    for name, value in results.geometry.other.items():
        share = name.startswith(("sign conflict", "CPT updates lost"))
        named.append((name, percent(value) if share else cell(value, share=False)))
    return markdown_table(["whole model", "value"], map(list, named))


def comparison_table(results: Results, *, width: int) -> tuple[Table, list[str]]:
    """The comparison of all variants for a terminal of `width` columns, and the headings of the
    measures that found no room. What is shown is whole; the most important measure always is.
    """
    lines, measures = _comparison(results), results.table.columns()
    shown = _measures_that_fit(measures, lines, width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.title, table.title_justify = "Comparison (percent unless said)", "left"
    rooms = [_column_width(measures, lines, place) for place in shown]
    longest = max((len(line[0]) for line in lines), default=0)
    left = max(1, width - sum(rooms) - _GAP * len(rooms))
    table.add_column("variant", vertical="bottom", overflow="fold", width=min(longest, left))
    for place, room in zip(shown, rooms, strict=True):
        table.add_column(measures[place].short, justify="right", vertical="bottom", width=room)
    for line in lines:
        table.add_row(line[0], *(line[1 + place] for place in shown))
    return table, [m.short for place, m in enumerate(measures) if place not in shown]


def _measures_that_fit(
    measures: Sequence[Measure], lines: Sequence[Sequence[str]], width: int
) -> list[int]:
    """Places of as many as fit beside the names: headlines first, in order of role."""
    left = width - max((len(line[0]) for line in lines), default=0)
    chosen: list[int] = []
    for place in sorted(range(len(measures)), key=lambda i: _importance(measures[i])):
        left -= _GAP + _column_width(measures, lines, place)
        if left < 0 and chosen:
            break
        chosen.append(place)
    return sorted(chosen)


def _importance(measure: Measure) -> tuple[bool, int]:
    return measure.aspect != "headline", MEASURE_ROLES.index(measure.role)


def _column_width(measures: Sequence[Measure], lines: Sequence[Sequence[str]], place: int) -> int:
    """The longest cell or word of the heading, which breaks between words."""
    texts = [*measures[place].short.split(), *(line[1 + place] for line in lines)]
    return max(len(text) for text in texts)


def comparison_text(results: Results) -> str:
    """The same as plain text, for logs and pipes."""
    header = ["variant", *(measure.short for measure in results.table.columns())]
    lines = [header, *_comparison(results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w)
            for i, (t, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _comparison(results: Results) -> list[list[str]]:
    """Name and cells of every variant."""
    return [
        [
            variant.label,
            *(
                cell(results.table.value(variant.name, measure), share=measure.is_share)
                for measure in results.table.columns()
            ),
        ]
        for variant in results.variants
    ]
