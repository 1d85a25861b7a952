"""Figure style, and byte-deterministic writing of figures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

from cpt_residual.config.contrasts import Kind
from cpt_residual.core.files import replacing
from cpt_residual.results.document import Variant

Axes = Any
Figure = Any
"""Matplotlib's own annotations are partial; its objects are met as Any, in figure modules only."""

COLOURS: Mapping[Kind, str] = {  # Okabe and Ito's palette: told apart by colour-blind readers
    "base": "#9A9A9A",
    "instruct": "#0072B2",
    "base_cpt": "#5C5C5C",
    "instruct_cpt": "#D55E00",
    "merged": "#009E73",
    "alpha": "#7FCEB9",
    "donor": "#56B4E9",
    "replay": "#CC79A7",
    "sft": "#E69F00",
    "control": "#B8A46A",
    "method": "#7A5195",
}
MARKERS: Mapping[Kind, str] = {
    "base": "o",
    "instruct": "s",
    "base_cpt": "o",
    "instruct_cpt": "v",
    "merged": "D",
    "alpha": "d",
    "donor": "P",
    "replay": "^",
    "sft": "X",
    "control": "h",
    "method": "p",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#B8A46A", "#5C5C5C")
"""Colours of things that are no variant, such as the sources of a pack (the same palette)."""
INK = "#222222"
FAINT = "#8A8A8A"
_DPI = 130
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from files: a dollar sign is one
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def house_style() -> Generator[None]:
    """Matplotlib's defaults plus ours, whatever the user's matplotlibrc says; restored after."""
    library: Any = mpl
    with library.rc_context():
        library.rcdefaults()
        library.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given inches, drawn by Agg (no display, no global state)."""
    figure = mpl_figure.Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(draw: Callable[[], Figure | None]) -> bytes | None:
    """The figure as PNG without date or version metadata; None when there is nothing to draw."""
    with house_style():
        figure = draw()
        if figure is None:
            return None
        out = BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
        return out.getvalue()


def write_png(path: Path, draw: Callable[[], Figure | None]) -> bool:
    """Write the figure; False when there is nothing to draw."""
    content = png_bytes(draw)
    if content is None:
        return False
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True


def numbered_points(
    figure: Figure, axes: Axes, points: Sequence[tuple[Variant, float, float]], note: str = ""
) -> None:
    """Markers with a number inside, and a legend that says which number is which variant (a star:
    it needs instruction data, as `note` explains)."""
    keys: list[Line2D] = []
    for number, (variant, x, y) in enumerate(points, start=1):
        look: dict[str, Any] = {
            "marker": MARKERS[variant.kind],
            "color": COLOURS[variant.kind],
            "linestyle": "",
        }
        axes.plot(x, y, markersize=12, zorder=3, **look)
        axes.annotate(
            str(number), (x, y), color="white", fontsize=7, ha="center", va="center", zorder=4
        )
        star = "*" if note and variant.needs_instruction_data else ""
        keys.append(Line2D([], [], markersize=7, label=f"{number}  {variant.label}{star}", **look))
    figure.legend(handles=keys, loc="outside right upper", title=note or None, title_fontsize=8)


def spread(positions: list[float], *, gap: float) -> list[float]:
    """Label positions at least `gap` apart, near the wanted ones, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for _ in range(200):
        moved = False
        for i in range(1, len(placed)):
            overlap = gap - (placed[i] - placed[i - 1])
            if overlap > 1e-9:
                placed[i - 1] -= overlap / 2
                placed[i] += overlap / 2
                moved = True
        if not moved:
            break
    result = list(positions)
    for place, index in zip(placed, order, strict=True):
        result[index] = place
    return result
