"""The one figure of `data inspect`: how long documents are, and where the tokens lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cpt_residual.data.inspection.lengths import LengthSummary
from cpt_residual.report.style import SERIES, Figure, new_figure, write_png


def draw_lengths(folder: Path, curves: Mapping[str, LengthSummary], unit: str) -> Path | None:
    """Write `folder/lengths.png` for the lengths of every source or file; same lengths, same bytes.
    None when there is no document."""
    path = folder / "lengths.png"
    return path if write_png(path, lambda: lengths_figure(curves, unit)) else None


def lengths_figure(curves: Mapping[str, LengthSummary], unit: str) -> Figure | None:
    """Shares of documents and of units by length, one bin for each factor of two. Of more sources
    than there are colours the largest are drawn."""
    if not curves:
        return None
    largest = sorted(curves, key=lambda name: -curves[name].total)[: len(SERIES)]
    figure = new_figure(9.6, 3.9)
    for axes, what in zip(figure.subplots(1, 2), ("documents", unit), strict=True):
        for name, colour in zip(largest, SERIES, strict=False):
            lengths = curves[name]
            weights = [b.count if what == "documents" else b.total for b in lengths.bins]
            shares = [100 * weight / (sum(weights) or 1) for weight in weights]
            edges = [max(0.5, bin_.first) for bin_ in lengths.bins] + [lengths.bins[-1].last + 1]
            shown = "".join(each if each.isprintable() else "?" for each in name)
            label = f"{shown}: {lengths.count:,}, median {lengths.median:,}"
            axes.stairs(shares, edges, color=colour, linewidth=1.7, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"length in {unit}")
        axes.set_ylabel(f"% of the {what} per bin")
        axes.set_title(f"Where the {what} lie")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(largest)))
    return figure


def _tick(value: float, _: int | None) -> str:
    """Powers of two in short: 512, 4Ki, 1Mi."""
    for size, name in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"
