"""What the filters left of a corpus, and which questions of the evaluation were in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.corpus import CorpusInspection
from cpt_residual.report.format import MINUS
from cpt_residual.report.style import FAINT, INK, Axes, Figure, new_figure

_WHOLE, _LOST, _HELD_OUT = "#5C5C5C", "#D55E00", "#0072B2"
_ROW_HEIGHT = 0.34


@dataclass(frozen=True)
class _Bar:
    """From `start` to `end` in documents and in characters, with its name."""

    name: str
    start: tuple[int, int]
    end: tuple[int, int]
    colour: str

    def lost(self, unit: int) -> int:
        return self.start[unit] - self.end[unit]


def filters_figure(found: CorpusInspection) -> Figure | None:
    """A waterfall from what was read to what is trained on: one bar for each reason to drop."""
    bars = _bars(found)
    if not found.filters or not bars:
        return None
    figure = new_figure(10.0, 1.35 + _ROW_HEIGHT * len(bars))
    panels = figure.subplots(1, 2, sharey=True)
    for unit, (axes, name) in enumerate(zip(panels, ("documents", "characters"), strict=True)):
        _waterfall(axes, bars, unit)
        axes.set_xlabel(name)
    panels[0].set_yticks(range(len(bars)), [bar.name for bar in bars])
    panels[0].set_ylim(len(bars) - 0.5, -0.5)
    panels[0].set_title("What the filters left of the corpus")
    return figure


def contamination_figure(filters: Sequence[FilterLedger]) -> Figure | None:
    """For each task the share of its questions of which the corpus holds an n-gram."""
    tasks = [task for one in filters for task in one.tasks]
    if not tasks:
        return None
    figure = new_figure(9.0, 1.2 + _ROW_HEIGHT * len(tasks))
    axes = figure.add_subplot()
    shares = [100 * task.questions_found / max(1, task.questions_checked) for task in tasks]
    axes.barh(range(len(tasks)), shares, height=0.62, color=_LOST)
    top = max(*shares, 1.0)
    for at, (task, share) in enumerate(zip(tasks, shares, strict=True)):
        text = (
            f"questions: {task.questions_found:,} of {task.questions_checked:,}, "
            f"documents: {task.documents:,}"
        )
        axes.annotate(
            text, (share, at), (5, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_xlim(0, 1.75 * top)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(range(len(tasks)), [task.task for task in tasks])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("% of the questions that were looked for")
    axes.set_title("Questions of the evaluation found in the corpus")
    return figure


def _bars(found: CorpusInspection) -> list[_Bar]:
    """Top to bottom. What a filter changes within documents moves the next bar's characters."""
    bars: list[_Bar] = []
    for one in found.filters:
        left = (one.documents_in, one.characters_in + one.characters_added)
        if not bars:
            bars.append(_Bar("read", (one.documents_in, one.characters_in), (0, 0), _WHOLE))
        reasons = [drop for drop in one.dropped if drop.documents]
        for drop in reasons:
            end = (left[0] - drop.documents, left[1] - drop.characters)
            reason = drop.reason.replace("_", " ")
            bars.append(_Bar(f"{one.name.replace('_', ' ')}: {reason}", left, end, _LOST))
            left = end
        if not reasons:
            bars.append(_Bar(one.name.replace("_", " "), left, left, _LOST))
    if bars and found.filters:
        last = found.filters[-1]
        left = (last.documents_out, last.characters_out)
        for name, key, colour in (
            ("copies of held-out documents", "heldout_copies_dropped", _LOST),
            ("held out", "heldout", _HELD_OUT),
        ):
            documents, characters = _heldout(found, key)
            if documents:
                end = (left[0] - documents, left[1] - characters)
                bars.append(_Bar(name, left, end, colour))
                left = end
        bars.append(_Bar("trained on", left, (0, 0), _WHOLE))
    return bars


def _heldout(found: CorpusInspection, key: str) -> tuple[int, int]:
    """Documents and characters that the ledger counts under `key`."""
    names = (f"{key}_documents" if key == "heldout" else key, f"{key}_characters")
    documents, characters = (found.ledger.get(name) for name in names)
    return (
        documents if isinstance(documents, int) else 0,
        characters if isinstance(characters, int) else 0,
    )


def _waterfall(axes: Axes, bars: Sequence[_Bar], unit: int) -> None:
    whole = bars[0].lost(unit) or 1
    for at, bar in enumerate(bars):
        low, high = sorted((bar.start[unit], bar.end[unit]))
        axes.barh(at, high - low, left=low, height=0.62, color=bar.colour)
        if at + 1 < len(bars):
            at_end = bar.start[unit] if at == 0 else bar.end[unit]
            axes.vlines(at_end, at, at + 1, color=FAINT, linewidth=0.7)
        total = bar.colour == _WHOLE
        sign = "" if total else MINUS
        share = 100 * (high - low) / whole
        axes.annotate(
            f"{sign}{high - low:,} ({share:.1f} %)" if high > low else "0",
            (high, at) if total else (low, at),
            (4, 0) if total else (-4, 0),
            textcoords="offset points",
            ha="left" if total else "right",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xlim(0, 1.8 * whole)  # room for the numbers of the longest bar
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _percent(value: float, _: int | None) -> str:
    """Nothing right of 100 %, where only text is."""
    return f"{value:g}" if value <= 100 else ""
