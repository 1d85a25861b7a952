"""Distribution of document lengths: of the documents, and of the units that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cpt_residual.data.inspection.lengths import BINS_PER_OCTAVE, LengthBin, LengthSummary
from cpt_residual.report.style import FAINT, SERIES, Axes, Figure, new_figure

MAX_CURVES = len(SERIES)


@dataclass(frozen=True)
class LengthCurve:
    """One source, or one file."""

    name: str
    lengths: LengthSummary


def lengths_figure(
    curves: Sequence[LengthCurve], unit: str, *, row: int | None = None
) -> Figure | None:
    """Two panels over one logarithmic axis of lengths, four bins to a doubling; areas are 100 %
    each. `row`: the tokens of a row, marked. Of more sources than there are colours the largest are
    drawn."""
    if not curves:
        return None
    largest = sorted(curves, key=lambda curve: -curve.lengths.total)[:MAX_CURVES]
    drawn = [curve for curve in curves if curve in largest]
    figure = new_figure(9.6, 3.9)
    panels: tuple[tuple[str, Callable[[LengthBin], int]], ...] = (
        ("documents", lambda bin_: bin_.count),
        (unit, lambda bin_: bin_.total),
    )
    for axes, (what, weight) in zip(figure.subplots(1, 2), panels, strict=True):
        for curve, colour in zip(drawn, SERIES, strict=False):
            _stairs(axes, curve, weight, colour)
        _decorate(axes, what, unit, row)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(drawn)))
    return figure


def _stairs(
    axes: Axes, curve: LengthCurve, weight: Callable[[LengthBin], int], colour: str
) -> None:
    bins = curve.lengths.bins
    whole = sum(weight(bin_) for bin_ in bins) or 1
    edges = [max(0.5, bin_.first) for bin_ in bins] + [bins[-1].last + 1]
    heights = [
        100 * weight(bin_) / whole / log2(high / low) / BINS_PER_OCTAVE
        for bin_, low, high in zip(bins, edges, edges[1:], strict=False)
    ]
    axes.stairs(heights, edges, fill=True, alpha=0.16, color=colour)
    summary = curve.lengths
    label = f"{curve.name}: {summary.count:,} documents, median {summary.median:,}"
    axes.stairs(heights, edges, color=colour, linewidth=1.7, label=label)


def _decorate(axes: Axes, what: str, unit: str, row: int | None) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{unit} of a document")
    axes.set_ylabel(f"% of the {what} per bin")
    axes.set_title(f"Where the {what} lie")
    if row is not None:
        axes.axvline(row, color=FAINT, linestyle="--", linewidth=1.1)
        axes.annotate(
            "a row",
            (row, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8.5,
            color=FAINT,
        )


def _tick(value: float, _: int | None) -> str:
    """Powers of two as people write them: 512, 4Ki, 1Mi."""
    for size, name in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"
