"""Figures of scores: comparison, trade-off, per type, alpha sweep."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import ReportFacts, Variant
from cpt_residual.report.format import TIMES
from cpt_residual.report.labels import PointLabel, along, error_bars, label_points
from cpt_residual.report.measures import BY_KEY, MeasureKey, Scores
from cpt_residual.report.style import COLOURS, FAINT, INK, MARKERS, Axes, Figure, new_figure, spread


def comparison_figure(facts: ReportFacts, scores: Scores) -> Figure | None:
    """Strict instruction following per variant (bar, one standard error), loose and open beside."""
    shown = [(v, scores.row(v.name, "strict")) for v in facts.variants]
    rows = [(v, row) for v, row in shown if row is not None]
    if not rows:
        return None
    figure = new_figure(8.6, 1.5 + 0.42 * len(rows))
    axes = figure.add_subplot()
    has_loose = has_open = False
    for place, (variant, row) in enumerate(rows):
        value = 100 * row.value
        axes.barh(place, value, height=0.62, color=COLOURS[variant.kind], zorder=2)
        if row.stderr:
            error = 100 * row.stderr
            axes.errorbar(value, place, xerr=error, color=INK, capsize=3, linewidth=1.2, zorder=3)
        loose, relaxed = scores.value(variant.name, "loose"), scores.value(variant.name, "open")
        if loose is not None:
            has_loose = True
            axes.plot(100 * loose, place + 0.2, marker="o", **_hollow(), zorder=4)
        if relaxed is not None:
            has_open = True
            axes.plot(100 * relaxed, place - 0.2, marker="D", **_hollow(), zorder=4)
        axes.text(112, place, f"{value:.1f}", va="center", ha="right", fontweight="bold")
    axes.set_yticks(range(len(rows)), [v.name for v, _ in rows])
    axes.text(112, -0.85, "strict", va="center", ha="right", fontsize=9)
    axes.set_xlim(0, 113)
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("prompts answered as instructed, %")
    axes.set_title(f"Instruction following, strict (n = {rows[0][1].n} prompts)")
    keys = [Line2D([], [], color=INK, linewidth=1.2, label="± 1 standard error (strict)")]
    if has_open:
        keys.append(
            Line2D([], [], marker="D", linestyle="", **_hollow(), label="turn need not be closed")
        )
    if has_loose:
        keys.append(Line2D([], [], marker="o", linestyle="", **_hollow(), label="loose"))
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    return figure


def tradeoff_figure(facts: ReportFacts, scores: Scores) -> Figure | None:
    """New-domain knowledge against instruction following; the arrow is what the residual does."""
    key: MeasureKey = "new_facts" if "new_facts" in scores.sources else "bits_new"
    points = [
        (v, x, y)
        for v in facts.variants
        if (x := scores.row(v.name, "strict")) and (y := scores.row(v.name, key))
    ]
    if len(points) < 2:
        return None
    share = BY_KEY[key].share
    factor = 100.0 if share else 1.0
    figure = new_figure(8.6, 5.6)
    axes = figure.add_subplot()
    where = {v.name: (100 * x.value, factor * y.value) for v, x, y in points}
    for variant, x, y in points:
        small = variant.kind == "alpha"
        axes.errorbar(
            100 * x.value,
            factor * y.value,
            xerr=_error(x, 100.0),
            yerr=_error(y, factor),
            marker=MARKERS[variant.kind],
            color=COLOURS[variant.kind],
            markersize=5 if small else 8,
            elinewidth=0.8,
            zorder=3,
        )
    obstacles = _draw_sweep(axes, facts, where) + _draw_arrow(axes, facts, where)
    for variant, x, y in points:
        obstacles += error_bars(*where[variant.name], _error(x, 100.0), _error(y, factor))
    axes.set_xlim(-4, 104)
    axes.set_xlabel(f"{BY_KEY['strict'].label}, %")
    if share:
        axes.set_ylim(-5, 108)
        axes.set_ylabel(f"{BY_KEY[key].label}, %")
    else:
        axes.margins(y=0.15)
        axes.invert_yaxis()
        axes.set_ylabel(f"{BY_KEY[key].label} (better upwards)")
    axes.set_title("New knowledge against instruction following (best: upper right)")
    label_points(axes, [_point_label(v, *where[v.name]) for v, _, _ in points], obstacles)
    return figure


def per_type_figure(facts: ReportFacts, scores: Scores) -> Figure | None:
    """Strict instruction following per instruction type and core variant."""
    types = scores.types()
    variants = [name for name in facts.roles.core if any(scores.type_row(name, t) for t in types)]
    if not types or not variants:
        return None
    table = np.full((len(types), len(variants)), np.nan)
    for i, label in enumerate(types):
        for j, name in enumerate(variants):
            row = scores.type_row(name, label)
            if row is not None:
                table[i, j] = 100 * row.value
    figure = new_figure(2.6 + 1.35 * len(variants), 1.5 + 0.29 * len(types))
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "white" if value < 55 else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    counts = [row.n for t in types if (row := scores.type_row(variants[0], t))]
    axes.set_xticks(range(len(variants)), variants)
    axes.set_yticks(range(len(types)), types)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="strict, %", shrink=0.9, pad=0.02)
    span = (
        f"{min(counts)} to {max(counts)}"
        if counts and min(counts) != max(counts)
        else f"{counts[0]}"
    )
    axes.set_title(f"Strict score per instruction type (n = {span} each)")
    return figure


def alpha_figure(facts: ReportFacts, scores: Scores) -> Figure | None:
    """Instruction following, new facts and bits per byte against alpha (0 = base_cpt)."""
    sweep = alpha_points(facts)
    if len(sweep) < 3:
        return None
    keys: list[MeasureKey] = [k for k in ("strict", "new_facts", "bits_new") if k in scores.sources]
    figure = new_figure(3.6 * len(keys) + 0.9, 3.7)
    for column, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), column + 1)
        factor = 100.0 if BY_KEY[key].share else 1.0
        rows = [(alpha, row) for alpha, v in sweep if (row := scores.row(v.name, key))]
        axes.errorbar(
            [alpha for alpha, _ in rows],
            [factor * row.value for _, row in rows],
            yerr=[_error(row, factor) or 0.0 for _, row in rows],
            color=COLOURS["merged"],
            marker="o",
            capsize=2,
            linewidth=1.8,
        )
        general = _general_bits(axes, sweep, scores) if key == "bits_new" else None
        _references(axes, facts, scores, key, general)
        axes.set_title(f"{BY_KEY[key].short}{', %' if BY_KEY[key].share else ''}")
        axes.set_xlabel("alpha")
        axes.set_xticks([alpha for alpha, _ in rows], [f"{alpha:g}" for alpha, _ in rows])
        if BY_KEY[key].share:
            axes.set_ylim(-4, 104)
    figure.suptitle(
        f"base_cpt + alpha {TIMES} residual (0 = {facts.roles.base_cpt}, 1 = the paper)",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    return figure


def alpha_points(facts: ReportFacts) -> list[tuple[float, Variant]]:
    """(alpha, variant) of the sweep, with the target itself as alpha 0; ascending."""
    found: list[tuple[float, Variant]] = []
    for variant in facts.variants:
        if variant.name == facts.roles.base_cpt:
            found.append((0.0, variant))
        elif variant.kind in ("alpha", "merged") and variant.alpha is not None:
            found.append((variant.alpha, variant))
    return sorted(found, key=lambda pair: pair[0])


def _general_bits(
    axes: Axes, sweep: list[tuple[float, Variant]], scores: Scores
) -> tuple[str, float, str] | None:
    """Bits per byte of general text beside those of the new domain; its label for the margin."""
    rows = [(alpha, row.value) for alpha, v in sweep if (row := scores.row(v.name, "bits_general"))]
    if not rows:
        return None
    alphas, values = [alpha for alpha, _ in rows], [value for _, value in rows]
    axes.plot(alphas, values, color=FAINT, marker="s", markersize=4, linewidth=1.2)
    return "general text", values[-1], FAINT


def _references(
    axes: Axes,
    facts: ReportFacts,
    scores: Scores,
    key: MeasureKey,
    extra: tuple[str, float, str] | None,
) -> None:
    """Dashed lines for instruct and instruct_cpt, named in the right margin with `extra`."""
    roles, share = facts.roles, BY_KEY[key].share
    lines = [
        (name, (100.0 if share else 1.0) * value, colour)
        for name, colour in (
            (roles.instruct, COLOURS["instruct"]),
            (roles.instruct_cpt, COLOURS["instruct_cpt"]),
        )
        if name is not None and (value := scores.value(name, key)) is not None
    ]
    for _, value, colour in lines:
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.1, zorder=1)
    low, high = (-4.0, 104.0) if share else axes.get_ylim()
    names = [*lines, extra] if extra else lines
    places = spread([value for _, value, _ in names], gap=0.075 * (high - low))
    for (name, _, colour), place in zip(names, places, strict=True):
        axes.annotate(
            name,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=8.5,
            va="center",
        )


def _draw_sweep(
    axes: Axes, facts: ReportFacts, where: dict[str, tuple[float, float]]
) -> list[tuple[float, float]]:
    """A thin line through the alpha sweep; returns points of it that labels should not cover."""
    path = [where[v.name] for _, v in alpha_points(facts) if v.name in where]
    if len(path) < 3:
        return []
    axes.plot(
        [x for x, _ in path], [y for _, y in path], color=COLOURS["alpha"], linewidth=1, zorder=1
    )
    return [spot for a, b in pairwise(path) for spot in along(a, b)]


def _draw_arrow(
    axes: Axes, facts: ReportFacts, where: dict[str, tuple[float, float]]
) -> list[tuple[float, float]]:
    start, end = where.get(facts.roles.base_cpt), where.get(facts.roles.merged)
    if start is None or end is None or start == end:
        return []
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": COLOURS["merged"],
            "linewidth": 2,
            "shrinkA": 6,
            "shrinkB": 7,
        },
        zorder=2,
    )
    return along(start, end)


def _point_label(variant: Variant, x: float, y: float) -> PointLabel:
    if variant.kind == "alpha" and variant.alpha is not None:
        return PointLabel(x, y, f"alpha {variant.alpha:g}", FAINT, size=8)
    colour = COLOURS[variant.kind]
    return PointLabel(x, y, variant.name, colour, bold=variant.kind in ("merged", "instruct"))


def _error(row: ResultRow, factor: float) -> float | None:
    return None if row.stderr is None else factor * row.stderr


def _hollow() -> dict[str, Any]:
    return {
        "markersize": 6,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "markeredgewidth": 1.2,
    }
