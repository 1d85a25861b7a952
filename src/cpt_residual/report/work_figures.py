"""Figures of the work behind the scores: training curves, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpt_residual.report.format import TIMES
from cpt_residual.report.style import (
    COLOURS,
    Axes,
    Figure,
    new_figure,
    numbered_points,
    spread,
)
from cpt_residual.results.document import Results

_CURVES = ("#56B4E9", "#B8A46A", "#882255", "#7FCEB9")  # of models that are no variant
_SMOOTH_SHARE = 0.06
_STAGES = ("pretrain", "sft", "cpt")
_ROUTE_KINDS = ("instruct_cpt", "merged", "replay", "sft")
_ROOM_RIGHT = 1.08  # the width of the cost figure, in those of its dearest route


@dataclass(frozen=True)
class TracePoint:
    """Training loss after `tokens` training tokens."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Traced:
    """The loss curve of the training of `model`."""

    model: str
    trace: Sequence[TracePoint]


def training_figure(results: Results, traces: Mapping[str, Sequence[TracePoint]]) -> Figure | None:
    """Loss against training tokens, one panel per kind of training, running mean over the raw."""
    traced = [t for t in results.trainings if traces.get(t.model)]
    stages = [stage for stage in _STAGES if any(t.stage == stage for t in traced)]
    if not stages:
        return None
    figure = new_figure(3.4 + 2.9 * (len(stages) - 1) + 1.0, 3.8)
    for column, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), column + 1)
        curves = [Traced(t.model, traces[t.model]) for t in traced if t.stage == stage]
        _curves(axes, results, curves)
        axes.set_title(stage)
        axes.set_xlabel("training tokens")
        if column == 0:
            axes.set_ylabel("loss (nats per token)")
    return figure


def cost_figure(results: Results) -> Figure | None:
    """FLOPs of each route beyond the released pair against the instruction following it reaches."""
    table, strict = results.table, results.table.measure("instruction_following")
    found = [
        (variant, variant.flops, row)
        for variant in results.variants
        if variant.kind in _ROUTE_KINDS
        and variant.flops
        and (row := table.row(variant.name, strict)) is not None
    ]
    if not found:
        return None
    most = max(flops for _, flops, _ in found)
    exponent = 3 * int(np.floor(np.log10(most) / 3))
    unit = 10.0**exponent
    figure = new_figure(9.4, 4.4)
    axes = figure.add_subplot()
    for variant, flops, row in found:
        error = None if row.stderr is None else 100 * row.stderr
        colour = COLOURS[variant.kind]
        axes.errorbar(flops / unit, 100 * row.value, yerr=error, color=colour, capsize=3)
    starred = any(variant.needs_instruction_data for variant, _, _ in found)
    numbered_points(
        figure,
        axes,
        [(variant, flops / unit, 100 * row.value) for variant, flops, row in found],
        "* needs instruction data" if starred else "",
    )
    axes.set_xlim(0, _ROOM_RIGHT * most / unit)
    axes.set_ylim(-4, 108)
    axes.set_xlabel(f"counted FLOPs relative to the released checkpoints ({TIMES} 1e{exponent})")
    axes.set_ylabel("instruction following, strict, %")
    axes.set_title("What each route costs and reaches")
    released = table.value(results.roles.instruct, strict)
    if released is not None:
        value, colour = 100 * released, COLOURS["instruct"]
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.1)
        text = f"{results.roles.instruct} as released: {value:.1f}"
        axes.text(0.01 * most / unit, value + 1.2, text, color=colour, fontsize=9, va="bottom")
    return figure


def _curves(axes: Axes, results: Results, trainings: list[Traced]) -> None:
    """Raw loss faint, running mean strong, names at the right end."""
    ends: list[tuple[str, float, str]] = []
    lows: list[float] = []
    highs: list[float] = []
    spare = cycle(_CURVES)
    for training in trainings:
        variant = results.variant(training.model)
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


def running_mean(trace: Sequence[TracePoint]) -> list[float]:
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
