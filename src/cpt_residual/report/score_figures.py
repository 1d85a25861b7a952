"""Figures of scores: comparison, trade-off, per type, alpha sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from cpt_residual.config.measures import Aspect, Measure
from cpt_residual.report.format import TIMES
from cpt_residual.report.style import (
    COLOURS,
    FAINT,
    INK,
    Axes,
    Figure,
    new_figure,
    numbered_points,
    spread,
)
from cpt_residual.results.document import Results, Variant
from cpt_residual.results.table import Score

_BESIDE: tuple[tuple[Aspect, str, float, str], ...] = (
    ("open", "D", -0.2, "turn need not be closed"),
    ("loose", "o", 0.2, "loose"),
)


def comparison_figure(results: Results) -> Figure | None:
    """Strict instruction following per variant (bar, one standard error), loose and open beside."""
    table, strict = results.table, results.table.measure("instruction_following")
    shown = [(v, table.row(v.name, strict)) for v in results.variants]
    rows = [(v, row) for v, row in shown if row is not None]
    if not rows:
        return None
    figure = new_figure(8.6, 1.5 + 0.42 * len(rows))
    axes = figure.add_subplot()
    keys = [Line2D([], [], color=INK, linewidth=1.2, label="± 1 standard error (strict)")]
    for place, (variant, row) in enumerate(rows):
        value = 100 * row.value
        axes.barh(place, value, height=0.62, color=COLOURS[variant.kind], zorder=2)
        if row.stderr:
            error = 100 * row.stderr
            axes.errorbar(value, place, xerr=error, color=INK, capsize=3, linewidth=1.2, zorder=3)
        axes.text(112, place, f"{value:.1f}", va="center", ha="right", fontweight="bold")
    for aspect, marker, shift, label in _BESIDE:
        values = [table.value(v.name, table.beside(strict, aspect)) for v, _ in rows]
        for place, value in enumerate(values):
            if value is not None:
                axes.plot(100 * value, place + shift, marker=marker, **_hollow(), zorder=4)
        if any(value is not None for value in values):
            keys.append(Line2D([], [], marker=marker, linestyle="", **_hollow(), label=label))
    axes.set_yticks(range(len(rows)), [v.label for v, _ in rows])
    axes.text(112, -0.85, "strict", va="center", ha="right", fontsize=9)
    axes.set_xlim(0, 113)
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("prompts answered as instructed, %")
    axes.set_title(f"Instruction following, strict (n = {rows[0][1].n} prompts)")
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    return figure


def tradeoff_figure(results: Results) -> Figure | None:
    """New-domain knowledge against instruction following; the arrow is what the residual does."""
    table, strict = results.table, results.table.measure("instruction_following")
    new = table.measure("new_knowledge") or table.measure("new_text")
    points = [
        (v, x, y)
        for v in results.variants
        if (x := table.row(v.name, strict)) and (y := table.row(v.name, new))
    ]
    if len(points) < 2 or new is None or strict is None:
        return None
    factor = 100.0 if new.is_share else 1.0
    figure = new_figure(9.4, 5.0 if len(points) <= 16 else 5.8)
    axes = figure.add_subplot()
    where = {v.name: (100 * x.value, factor * y.value) for v, x, y in points}
    for variant, x, y in points:
        axes.errorbar(
            *where[variant.name],
            xerr=_error(x, 100.0),
            yerr=_error(y, factor),
            color=COLOURS[variant.kind],
            elinewidth=0.8,
            zorder=2,
        )
    _draw_sweep(axes, results, where)
    _draw_arrow(axes, results, where)
    numbered_points(figure, axes, [(v, *where[v.name]) for v, _, _ in points])
    axes.set_xlim(-4, 104)
    axes.set_xlabel(f"{strict.label}, %")
    if new.is_share:
        axes.set_ylim(-5, 105)
        axes.set_ylabel(f"{new.label}, %")
    else:
        axes.margins(y=0.15)
        axes.invert_yaxis()
        axes.set_ylabel(f"{new.label} (better upwards)")
    axes.set_title("New knowledge against instruction following (best: upper right)")
    return figure


def per_type_figure(results: Results) -> Figure | None:
    """Strict instruction following per instruction type and core variant."""
    strict = results.table.measure("instruction_following")
    if strict is None:
        return None
    task, types = strict.task, results.table.types(strict)

    def row(variant: str, metric: str) -> Score | None:
        return results.table.of_metric(variant, task, metric)

    variants = [name for name in results.core if any(row(name, t) for t in types)]
    if not types or not variants:
        return None
    table = np.full((len(types), len(variants)), np.nan)
    for i, metric in enumerate(types):
        for j, name in enumerate(variants):
            if (score := row(name, metric)) is not None:
                table[i, j] = 100 * score.value
    figure = new_figure(2.6 + 1.35 * len(variants), 1.5 + 0.29 * len(types))
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "white" if value < 55 else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    counts = [score.n for t in types if (score := row(variants[0], t))]
    axes.set_xticks(range(len(variants)), [results.label(name) for name in variants])
    axes.set_yticks(range(len(types)), [t.removeprefix("type/") for t in types])
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


def alpha_figure(results: Results) -> Figure | None:
    """Instruction following, new facts and bits per byte against alpha (0 = base_cpt)."""
    sweep, table = alpha_points(results), results.table
    if len(sweep) < 3:
        return None
    roles = ("instruction_following", "new_knowledge", "new_text")
    measures = [m for role in roles if (m := table.measure(role)) is not None]
    figure = new_figure(3.6 * len(measures) + 0.9, 3.7)
    for column, measure in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), column + 1)
        factor = 100.0 if measure.is_share else 1.0
        rows = [(alpha, row) for alpha, v in sweep if (row := table.row(v.name, measure))]
        axes.errorbar(
            [alpha for alpha, _ in rows],
            [factor * row.value for _, row in rows],
            yerr=[_error(row, factor) or 0.0 for _, row in rows],
            color=COLOURS["merged"],
            marker="o",
            capsize=2,
            linewidth=1.8,
        )
        _references(axes, results, measure, sweep)
        axes.set_title(f"{measure.short}{', %' if measure.is_share else ''}")
        axes.set_xlabel("alpha")
        axes.set_xticks([alpha for alpha, _ in rows], [f"{alpha:g}" for alpha, _ in rows])
        if measure.is_share:
            axes.set_ylim(-4, 104)
    figure.suptitle(
        f"base_cpt + alpha {TIMES} residual (0 = {results.roles.base_cpt}, 1 = the paper)",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    return figure


def alpha_points(results: Results) -> list[tuple[float, Variant]]:
    """(alpha, variant) of the sweep, with the target itself as alpha 0; ascending."""
    found: list[tuple[float, Variant]] = []
    for variant in results.variants:
        if variant.name == results.roles.base_cpt:
            found.append((0.0, variant))
        elif variant.kind in ("alpha", "merged") and variant.alpha is not None:
            found.append((variant.alpha, variant))
    return sorted(found, key=lambda pair: pair[0])


def _references(
    axes: Axes, results: Results, measure: Measure, sweep: list[tuple[float, Variant]]
) -> None:
    """Dashed lines for instruct and instruct_cpt, and general text beside bits per byte of new
    text; named in the right margin."""
    table, roles = results.table, results.roles
    factor = 100.0 if measure.is_share else 1.0
    names: list[tuple[str, float, str]] = []
    for name, colour in (
        (roles.instruct, COLOURS["instruct"]),
        (roles.instruct_cpt, COLOURS["instruct_cpt"]),
    ):
        value = table.value(name, measure)
        if name is not None and value is not None:
            axes.axhline(factor * value, color=colour, linestyle="--", linewidth=1.1, zorder=1)
            names.append((results.label(name), factor * value, colour))
    general = table.measure("general_text") if measure.role == "new_text" else None
    rows = [(alpha, row.value) for alpha, v in sweep if (row := table.row(v.name, general))]
    if rows:
        axes.plot(*zip(*rows, strict=True), color=FAINT, marker="s", markersize=4, linewidth=1.2)
        names.append(("general text", rows[-1][1], FAINT))
    low, high = (-4.0, 104.0) if measure.is_share else axes.get_ylim()
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


def _draw_sweep(axes: Axes, results: Results, where: dict[str, tuple[float, float]]) -> None:
    """A thin line through the alpha sweep."""
    path = [where[v.name] for _, v in alpha_points(results) if v.name in where]
    if len(path) > 2:
        axes.plot(*zip(*path, strict=True), color=COLOURS["alpha"], linewidth=1, zorder=1)


def _draw_arrow(axes: Axes, results: Results, where: dict[str, tuple[float, float]]) -> None:
    start, end = where.get(results.roles.base_cpt), where.get(results.roles.merged)
    if start is None or end is None or start == end:
        return
    arrow = {"arrowstyle": "-|>", "color": COLOURS["merged"], "linewidth": 2}
    axes.annotate("", xy=end, xytext=start, arrowprops={**arrow, "shrinkA": 6, "shrinkB": 7})


def _error(row: Score, factor: float) -> float | None:
    return None if row.stderr is None else factor * row.stderr


def _hollow() -> dict[str, Any]:
    return {
        "markersize": 6,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "markeredgewidth": 1.2,
    }
