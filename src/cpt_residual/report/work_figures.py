"""Figures of the work behind the scores: training curves, geometry, cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import Geometry, ReportFacts, TracePoint, Training, Variant
from cpt_residual.report.format import MINUS, MISSING, TIMES
from cpt_residual.report.labels import PointLabel, along, error_bars, label_points
from cpt_residual.report.measures import Scores
from cpt_residual.report.style import COLOURS, FAINT, MARKERS, Axes, Figure, new_figure, spread

_CURVES = ("#56B4E9", "#B8A46A", "#882255", "#7FCEB9")  # of models that are no variant
_SMOOTH_SHARE = 0.06
_STAGES = ("pretrain", "sft", "cpt")
_MODULES = (
    "embed_tokens",
    "input_layernorm",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "post_attention_layernorm",
    "gate_proj",
    "up_proj",
    "down_proj",
    "norm",
    "lm_head",
)
_ROUTE_KINDS = ("instruct_cpt", "merged", "replay", "sft")
_ROOM_RIGHT = 1.18  # the width of the cost figure, in those of its dearest route
_MAX_NUMBERED_CELLS = 48
_LEAST_COSINE_SCALE = 0.2  # so that noise around zero does not look like structure

Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def training_figure(facts: ReportFacts) -> Figure | None:
    """Loss against training tokens, one panel per kind of training, running mean over the raw."""
    traced = [t for t in facts.trainings if t.trace]
    stages = [stage for stage in _STAGES if any(t.stage == stage for t in traced)]
    if not stages:
        return None
    figure = new_figure(3.4 + 2.9 * (len(stages) - 1) + 1.0, 3.8)
    for column, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), column + 1)
        _curves(axes, facts, [t for t in traced if t.stage == stage])
        axes.set_title(stage)
        axes.set_xlabel("training tokens")
        if column == 0:
            axes.set_ylabel("loss (nats per token)")
    return figure


def geometry_figure(facts: ReportFacts) -> Figure | None:
    """Drift per layer and module of both CPT models, and cosines with the residual."""
    geometry = facts.geometry
    if geometry is None or not geometry.tensors:
        return None
    names = _panels(geometry, facts)
    modules, columns = _grid(geometry)
    if not names:
        return None
    tables = {name: _matrix(geometry, name, modules, columns) for name in names}
    longest = max(len(line) for name in names for line in _wrap(name).split("\n"))
    width = max(2.1, 0.4 * len(columns) + 0.5, 0.11 * longest + 0.6)
    figure = new_figure(1.9 + width * len(names), 1.7 + 0.31 * len(modules))
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    for cosine in (False, True):
        pairs: list[tuple[Axes, str]] = [*zip(grid, names, strict=True)]
        group = [(a, n) for a, n in pairs if n.startswith("cosine") == cosine]
        if not group:
            continue
        peak = max(float(np.nanmax(np.abs(tables[name]))) for _, name in group)
        limit = max(peak, _LEAST_COSINE_SCALE) if cosine else peak or 1.0
        images = [_heat(axes, tables[name], limit, cosine=cosine) for axes, name in group]
        for axes, name in group:
            axes.set_xticks(range(len(columns)), _column_labels(columns))
            axes.set_yticks(range(len(modules)), modules if axes is grid[0] else [])
            axes.set_title(_wrap(name), fontsize=10)
            axes.set_xlabel("layer")
        figure.colorbar(images[-1], ax=[axes for axes, _ in group], shrink=0.85, pad=0.02)
    return figure


def _heat(axes: Axes, table: Table, limit: float, *, cosine: bool) -> Any:
    """One heat map, numbered when it has few cells. Cosines diverge around white."""
    image = axes.imshow(
        table,
        cmap="PuOr" if cosine else "cividis",
        vmin=-limit if cosine else 0.0,
        vmax=limit,
        aspect="auto",
    )
    if table.size <= _MAX_NUMBERED_CELLS:
        for (i, j), value in np.ndenumerate(table):
            if not np.isnan(value):
                dark = abs(value) > 0.6 * limit if cosine else value < 0.55 * limit
                text = f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", MINUS)
                colour = "white" if dark else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def cost_figure(facts: ReportFacts, scores: Scores) -> Figure | None:
    """FLOPs of each route beyond the released pair against the instruction following it reaches."""
    points, exponent = _routes(facts, scores)
    if not points:
        return None
    figure = new_figure(8.6, 5.0)
    axes = figure.add_subplot()
    for point in points:
        axes.errorbar(
            point.flops,
            point.value,
            yerr=point.stderr,
            marker=MARKERS[point.variant.kind],
            color=COLOURS[point.variant.kind],
            markersize=9,
            capsize=3,
            linestyle="",
            zorder=3,
        )
    most = max(point.flops for point in points)
    axes.set_xlim(0, _ROOM_RIGHT * most)
    axes.set_ylim(-4, 108)
    axes.set_xlabel(f"counted FLOPs beyond the released pair ({TIMES} 1e{exponent})")
    axes.set_ylabel("instruction following, strict, %")
    axes.set_title("What each route costs and reaches")
    obstacles = [spot for each in points for spot in each.error_bar()]
    obstacles += _released_line(axes, facts, scores, most)
    label_points(axes, [point.label() for point in points], obstacles)
    if any(point.variant.needs_instruction_data for point in points):
        figure.supxlabel("* needs instruction data", fontsize=9, x=0.99, ha="right", color=FAINT)
    return figure


@dataclass(frozen=True)
class _Route:
    """A route's cost (FLOPs in the unit of the axis) and what it reaches, in percent."""

    variant: Variant
    flops: float
    value: float
    stderr: float | None

    def error_bar(self) -> list[tuple[float, float]]:
        return error_bars(self.flops, self.value, None, self.stderr)

    def label(self) -> PointLabel:
        return PointLabel(
            self.flops,
            self.value,
            _route_label(self.variant),
            COLOURS[self.variant.kind],
            bold=self.variant.kind == "merged",
        )


def _routes(facts: ReportFacts, scores: Scores) -> tuple[list[_Route], int]:
    """All routes that were scored, and the power of ten (a multiple of three) that is the unit."""
    found: list[tuple[Variant, float, ResultRow]] = []
    for variant in facts.variants:
        row = scores.row(variant.name, "strict")
        if row is not None and variant.flops and variant.kind in _ROUTE_KINDS:
            found.append((variant, variant.flops, row))
    if not found:
        return [], 0
    exponent = 3 * int(np.floor(np.log10(max(flops for _, flops, _ in found)) / 3))
    routes = [
        _Route(
            variant,
            flops / 10.0**exponent,
            100 * row.value,
            None if row.stderr is None else 100 * row.stderr,
        )
        for variant, flops, row in found
    ]
    return routes, exponent


def _released_line(
    axes: Axes, facts: ReportFacts, scores: Scores, most: float
) -> list[tuple[float, float]]:
    """The score of the released instruct model as a line with its name; returns where they lie."""
    released = scores.value(facts.roles.instruct, "strict")
    if released is None:
        return []
    value = 100 * released
    axes.axhline(value, color=COLOURS["instruct"], linestyle="--", linewidth=1.1)
    axes.annotate(
        f"{facts.roles.instruct} as released: {value:.1f}",
        (0.01, value + 1.2),
        xycoords=("axes fraction", "data"),
        color=COLOURS["instruct"],
        fontsize=9,
        va="bottom",
    )
    line = along((0, value), (_ROOM_RIGHT * most, value), steps=120)
    return [*line, *along((0, value + 3), (0.28 * most, value + 3))]


def _curves(axes: Axes, facts: ReportFacts, trainings: list[Training]) -> None:
    """Raw loss faint, running mean strong, names at the right end."""
    ends: list[tuple[str, float, str]] = []
    lows: list[float] = []
    highs: list[float] = []
    spare = cycle(_CURVES)
    for training in trainings:
        variant = facts.variant(training.model)
        named = variant is not None and variant.kind != "control"
        colour = COLOURS[variant.kind] if variant is not None and named else next(spare)
        tokens = [point.tokens for point in training.trace]
        smooth = running_mean(training.trace)
        axes.plot(tokens, [p.loss for p in training.trace], color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(tokens, smooth, color=colour, linewidth=1.8)
        ends.append((training.model, smooth[-1], colour))
        lows.append(min(smooth))
        highs.append(max(smooth))
    low, high = min(lows), max(highs)
    margin = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)
    places = spread([end for _, end, _ in ends], gap=0.065 * (high - low + 2 * margin))
    lift = max(0.0, low - margin - min(places))
    for (name, _, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            (1.02, place + lift),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=8.5,
            va="center",
        )
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def running_mean(trace: tuple[TracePoint, ...]) -> list[float]:
    """Centred running mean over about 6 % of the steps; symmetric and shorter at the start, where
    the loss falls steeply, cut off at the end."""
    losses = [point.loss for point in trace]
    half = max(1, int(_SMOOTH_SHARE * len(losses) / 2)) if len(losses) > 8 else 0
    found: list[float] = []
    for i in range(len(losses)):
        reach = min(half, i)
        window = losses[i - reach : i + reach + 1]
        found.append(sum(window) / len(window))
    return found


def _panels(geometry: Geometry, facts: ReportFacts) -> list[str]:
    present = {name for tensor in geometry.tensors for name in tensor.values}
    drifts = [f"drift {name}" for name in (facts.roles.base_cpt, facts.roles.instruct_cpt)]
    cosines = sorted((n for n in present if n.startswith("cosine")), reverse=True)
    return [name for name in drifts if name in present] + cosines[:2]


def _grid(geometry: Geometry) -> tuple[list[str], list[int | None]]:
    present = {tensor.module for tensor in geometry.tensors}
    modules = [name for name in _MODULES if name in present]
    modules += sorted(present - set(modules))
    layers = sorted({t.layer for t in geometry.tensors if t.layer is not None})
    columns: list[int | None] = [*layers]
    if any(tensor.layer is None for tensor in geometry.tensors):
        columns.append(None)
    return modules, columns


def _matrix(geometry: Geometry, name: str, modules: list[str], columns: list[int | None]) -> Table:
    table = np.full((len(modules), len(columns)), np.nan)
    for tensor in geometry.tensors:
        if name in tensor.values:
            table[modules.index(tensor.module), columns.index(tensor.layer)] = tensor.values[name]
    return table


def _column_labels(columns: list[int | None]) -> list[str]:
    """Every layer when few, every fourth when many; a dash for tensors outside the layers."""
    every = 1 if len(columns) <= 12 else 4
    return [MISSING if c is None else str(c) if c % every == 0 else "" for c in columns]


def _wrap(name: str) -> str:
    """`cosine residual, base_cpt` on three lines, so that narrow panels keep their titles apart."""
    return name.replace("cosine ", "cosine\n").replace("drift ", "drift\n").replace(", ", "\n")


def _route_label(variant: Variant) -> str:
    """Name and kinds of steps; a star for a route that needs instruction data."""
    words: list[str] = []
    for step in variant.route or ():
        kind = step.name.split(":")[0]
        if kind not in words:
            words.append(kind)
    star = "*" if variant.needs_instruction_data else ""
    return f"{variant.name}{star}\n{' + '.join(words)}"
