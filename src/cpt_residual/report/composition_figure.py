"""What a pack is made of along its rows."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cpt_residual.data.inspection.pack import Composition
from cpt_residual.report.style import SERIES, Figure, new_figure

_PADDING = "#D9D9D9"


def composition_figure(found: Composition, num_rows: int) -> Figure | None:
    """Share of every position by source, padding on top, in blocks of neighbouring rows. None when
    there is one source and no padding but in the last block, where the budget ends."""
    if len(found.sources) == 1 and not any(found.padding[:-1]):
        return None
    tokens_SB = np.array(found.tokens, dtype=np.float64).T
    padding_B = np.array(found.padding, dtype=np.float64)
    layers = [*tokens_SB, *([padding_B] if padding_B.any() else [])]
    positions_B = np.maximum(sum(layers), 1.0)
    num_blocks = len(padding_B)
    edges = np.ceil(np.arange(num_blocks + 1) * num_rows / num_blocks)
    whole = float(positions_B.sum())
    names = [*(name if name.isprintable() else ascii(name) for name in found.sources), "padding"]
    figure = new_figure(9.0, 3.6)
    axes = figure.add_subplot()
    base_B = np.zeros(num_blocks)
    for number, (layer, name) in enumerate(zip(layers, names, strict=False)):
        share_B = 100 * layer / positions_B
        colour = _PADDING if name == "padding" else SERIES[number % len(SERIES)]
        total = int(layer.sum())
        axes.stairs(
            base_B + share_B,
            edges,
            baseline=base_B,
            fill=True,
            color=colour,
            label=f"{name}: {total:,} ({100 * total / whole:.1f} %)",
        )
        base_B = base_B + share_B
    axes.set_xlim(0, num_rows)
    axes.set_ylim(0, 100)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_row))
    axes.set_xlabel("rows, in the order of training")
    axes.set_ylabel("% of positions")
    axes.set_title("What the pack is made of")
    figure.legend(loc="outside lower center", ncols=min(3, len(layers)))
    return figure


def _row(value: float, _: int | None) -> str:
    return f"{value:,.0f}"
