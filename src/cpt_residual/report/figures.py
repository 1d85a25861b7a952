"""All figures of a report: what is drawn, where, and why one is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.report.facts import ReportFacts
from cpt_residual.report.heatmaps import heatmap_figure
from cpt_residual.report.measures import Scores
from cpt_residual.report.score_figures import (
    alpha_figure,
    comparison_figure,
    per_type_figure,
    tradeoff_figure,
)
from cpt_residual.report.style import Figure, write_png
from cpt_residual.report.work_figures import cost_figure, geometry_figure, training_figure


@dataclass(frozen=True)
class FigureNote:
    """A figure that was written, or the reason why it was not (`skipped`)."""

    name: str
    caption: str
    skipped: str | None


_Planned = tuple[str, str, str, Callable[[], Figure | None]]
"""Name, caption, why it may be left out, and what draws it."""


def draw_figures(
    facts: ReportFacts,
    scores: Scores,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[FigureNote, ...]:
    """Write `folder/NAME.png` for every figure that has data; same facts, same bytes."""
    plan = _plan(facts, scores)
    notes: list[FigureNote] = []
    for name, caption, reason, draw in plan:
        drawn = write_png(folder / f"{name}.png", draw)
        notes.append(FigureNote(name, caption, None if drawn else reason))
        if progress is not None:
            progress(len(notes), len(plan), "figures")
    return tuple(notes)


def _plan(facts: ReportFacts, scores: Scores) -> tuple[_Planned, ...]:
    return (
        (
            "comparison",
            "Strict instruction following per variant, with loose and open scores beside it.",
            "no task scored prompt-level strict instruction following",
            lambda: comparison_figure(facts, scores),
        ),
        (
            "tradeoff",
            "New-domain knowledge against instruction following; the arrow is the residual.",
            "no measure of new-domain knowledge beside instruction following",
            lambda: tradeoff_figure(facts, scores),
        ),
        (
            "per_type",
            "Strict score per instruction type and core variant.",
            "no scores per instruction type",
            lambda: per_type_figure(facts, scores),
        ),
        (
            "alpha",
            "The alpha sweep.",
            "no alpha sweep among the variants",
            lambda: alpha_figure(facts, scores),
        ),
        (
            "training",
            "Loss against training tokens of every training (running mean over the raw curve).",
            "nothing was trained",
            lambda: training_figure(facts),
        ),
        (
            "geometry",
            "Relative drift and cosines with the residual, per layer and module.",
            "no geometry was measured per tensor",
            lambda: geometry_figure(facts),
        ),
        (
            "geometry_heatmaps",
            "CPT of the base and the residual, per layer and part of a layer.",
            "no geometry was measured per layer and part",
            lambda: heatmap_figure(facts.geometry.cells) if facts.geometry else None,
        ),
        (
            "cost",
            "Counted FLOPs of each route beyond the released pair, and what it reaches.",
            "no route with known FLOPs was scored",
            lambda: cost_figure(facts, scores),
        ),
    )
