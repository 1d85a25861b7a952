"""All figures of a report: what is drawn, where, and why one is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpt_residual.report.heatmaps import heatmap_figure
from cpt_residual.report.score_figures import (
    alpha_figure,
    comparison_figure,
    per_type_figure,
    tradeoff_figure,
)
from cpt_residual.report.style import Figure, write_png
from cpt_residual.report.work_figures import TracePoint, cost_figure, training_figure
from cpt_residual.results.document import Results
from cpt_residual.weights.analysis.geometry import CellRow


@dataclass(frozen=True)
class Pictured:
    """What figures show beyond the results: loss by model, geometry per layer and part."""

    traces: Mapping[str, Sequence[TracePoint]] = field(
        default_factory=dict[str, Sequence[TracePoint]]
    )
    cells: Sequence[CellRow] = ()


@dataclass(frozen=True)
class FigureNote:
    """A figure that was written, or the reason why it was not (`skipped`)."""

    name: str
    caption: str
    skipped: str | None


_Planned = tuple[str, str, str, Callable[[], Figure | None]]
"""Name, caption, why it may be left out, and what draws it."""


def draw_figures(
    results: Results,
    pictured: Pictured,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[FigureNote, ...]:
    """Write `folder/NAME.png` for every figure that has data; same values, same bytes."""
    plan = _plan(results, pictured)
    notes: list[FigureNote] = []
    for name, caption, reason, draw in plan:
        drawn = write_png(folder / f"{name}.png", draw)
        notes.append(FigureNote(name, caption, None if drawn else reason))
        if progress is not None:
            progress(len(notes), len(plan), "figures")
    return tuple(notes)


def _plan(results: Results, pictured: Pictured) -> tuple[_Planned, ...]:
    return (
        (
            "comparison",
            "Strict instruction following per variant, with loose and open scores beside it.",
            "no task scored prompt-level strict instruction following",
            lambda: comparison_figure(results),
        ),
        (
            "tradeoff",
            "New-domain knowledge against instruction following; the arrow is the residual.",
            "no measure of new-domain knowledge beside instruction following",
            lambda: tradeoff_figure(results),
        ),
        (
            "per_type",
            "Strict score per instruction type and core variant.",
            "no scores per instruction type",
            lambda: per_type_figure(results),
        ),
        (
            "alpha",
            "The alpha sweep.",
            "no alpha sweep among the variants",
            lambda: alpha_figure(results),
        ),
        (
            "training",
            "Loss against training tokens of every training (running mean over the raw curve).",
            "nothing was trained",
            lambda: training_figure(results, pictured.traces),
        ),
        (
            "geometry_heatmaps",
            "CPT of the base and the residual, per layer and part of a layer.",
            "no geometry was measured per layer and part",
            lambda: heatmap_figure(pictured.cells),
        ),
        (
            "cost",
            "Counted FLOPs of each route beyond the released pair, and what it reaches.",
            "no route with known FLOPs was scored",
            lambda: cost_figure(results),
        ),
    )
