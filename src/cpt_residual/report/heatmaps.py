"""Heat maps of a geometry report: layers by parts of a layer, one panel per measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cpt_residual.report.format import MINUS
from cpt_residual.report.style import Axes, Figure, new_figure, write_png
from cpt_residual.weights.analysis.geometry import CellRow, GeometryReport, GeometryRow

HEATMAPS_FILE = "geometry_heatmaps.png"
_PARTS = ("q", "k", "v", "q/k/v", "o", "attention", "gate", "up", "gate/up", "down", "mlp", "norm")
_OUTSIDE = ("embeddings", "norm", "head")
_MISSING = {"facecolor": "#CFCFCF", "edgecolor": "#8A8A8A", "hatch": "/////", "linewidth": 0}
_MAX_NUMBERED_LAYERS = 16
_NUMBERED_WIDTH, _PLAIN_WIDTH, _NARROW_WIDTH = 0.44, 0.2, 0.115  # inches of a cell
_ROW_HEIGHT = 0.235

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Panel:
    """One measure. `centre` None: colours run from 0 up; else they diverge around it, to at least
    `least` on both sides, so that noise does not look like structure."""

    title: str
    value: Callable[[GeometryRow], float | None]
    colours: str = "cividis"
    centre: float | None = None
    least: float = 0.0
    percent: bool = False

    @property
    def scale(self) -> int:
        return 100 if self.percent else 1


_PANELS = (
    _Panel("Drift: norm of the CPT delta / norm of the base", lambda row: row.drift),
    _Panel(
        "Residual: its norm / norm of the base",
        lambda row: row.residual_norm / row.base_norm if row.base_norm else None,
    ),
    _Panel(
        "Cosine of CPT delta and residual (orange: they oppose)",
        lambda row: row.cosine,
        colours="PuOr",
        centre=0.0,
        least=0.2,
    ),
    _Panel(
        "Sign conflict of CPT delta and residual, % (orange: more than by chance)",
        lambda row: row.sign_conflict,
        colours="PuOr_r",
        centre=0.5,
        least=0.1,
        percent=True,
    ),
    _Panel("CPT updates lost to bf16 rounding, %", lambda row: row.lost_to_bf16, percent=True),
)


@dataclass(frozen=True)
class _Grid:
    """What the cells are: `parts` by `layers`, and `outside`, the classes without a layer."""

    parts: tuple[tuple[str, str], ...]
    layers: tuple[int, ...]
    outside: tuple[str, ...]

    @property
    def numbered(self) -> bool:
        return len(self.layers) <= _MAX_NUMBERED_LAYERS

    @property
    def width(self) -> float:
        """Inches of the layers' columns."""
        wide = _PLAIN_WIDTH if len(self.layers) <= 40 else _NARROW_WIDTH
        return max(3.6, (_NUMBERED_WIDTH if self.numbered else wide) * len(self.layers))


def draw_heatmaps(report: GeometryReport, folder: Path) -> list[Path]:
    """Write geometry_heatmaps.png and return its path; nothing for a report without cells.

    The same report gives the same bytes. A measure that no cell has gets no panel; a single cell
    without it is grey and hatched. Models of up to 16 layers carry numbers."""
    path = folder / HEATMAPS_FILE
    return [path] if write_png(path, lambda: heatmap_figure(report.cells)) else []


def heatmap_figure(cells: Sequence[CellRow]) -> Figure | None:
    """One panel per measure that any cell has, below one another so that layers line up."""
    panels = [p for p in _PANELS if any(p.value(cell) is not None for cell in cells)]
    if not panels:
        return None
    grid = _grid_of(cells)
    rows = max(len(grid.parts), len(grid.outside), 3)
    strip = 0.62 if grid.outside else 0.01
    width = grid.width + strip + 3.1
    figure = new_figure(width, len(panels) * (_ROW_HEIGHT * rows + 0.5) + 0.35)
    shape = {"width_ratios": [grid.width, strip]}
    for at, (panel, (axes, side)) in enumerate(
        zip(panels, figure.subplots(len(panels), 2, squeeze=False, gridspec_kw=shape), strict=True)
    ):
        _draw(figure, panel, cells, grid, (axes, side))
        if at == len(panels) - 1:
            axes.set_xlabel("layer")
    return figure


def _grid_of(cells: Sequence[CellRow]) -> _Grid:
    order = {part: at for at, part in enumerate(_PARTS)}
    parts = {(cell.module, cell.part) for cell in cells if cell.layer is not None}
    present = {cell.part for cell in cells if cell.layer is None}
    return _Grid(
        parts=tuple(sorted(parts, key=lambda key: (order.get(key[1], len(order)), key))),
        layers=tuple(sorted({cell.layer for cell in cells if cell.layer is not None})),
        outside=tuple(
            [part for part in _OUTSIDE if part in present] + sorted(present - {*_OUTSIDE})
        ),
    )


def _draw(
    figure: Figure,
    panel: _Panel,
    cells: Sequence[CellRow],
    grid: _Grid,
    places: tuple[Axes, Axes],
) -> None:
    inside, outside = _tables(panel, cells, grid)
    low, high = _limits(panel, np.concatenate([inside.ravel(), outside.ravel()]))
    axes, side = places
    images: list[Any] = []
    for place, table in ((axes, inside), (side, outside)):
        place.grid(visible=False)
        place.spines[:].set_visible(False)
        place.tick_params(length=0, labelsize=8)
        if not table.size:
            place.set_axis_off()
            continue
        place.patch.set(**_MISSING)
        image = place.imshow(table, cmap=panel.colours, vmin=low, vmax=high, aspect="auto")
        images.append(image)
        _separate(place, table)
        if place is side or grid.numbered:
            _number(place, image, table, panel.scale, digits=_digits(panel, high))
    axes.set_title(panel.title, fontsize=10, pad=5)
    axes.set_yticks(range(len(grid.parts)), [_part_label(*key) for key in grid.parts])
    axes.set_xticks(*_layer_ticks(grid.layers))
    side.yaxis.tick_right()
    side.set_yticks(
        range(len(grid.outside)), ["final norm" if n == "norm" else n for n in grid.outside]
    )
    side.set_xticks([])
    bar = figure.colorbar(images[0], ax=[axes, side], pad=0.015, fraction=0.04, aspect=14)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))

    def tick(value: float, _: int | None) -> str:
        return f"{panel.scale * value + 0.0:.4g}".replace("-", MINUS)

    bar.ax.yaxis.set_major_formatter(FuncFormatter(tick))


def _tables(panel: _Panel, cells: Sequence[CellRow], grid: _Grid) -> tuple[Table, Table]:
    """Values by (part, layer), and by (class outside the layers, 1); NaN where there is none."""
    inside = np.full((len(grid.parts), len(grid.layers)), np.nan)
    outside = np.full((len(grid.outside), 1), np.nan)
    for cell in cells:
        value = panel.value(cell)
        if value is None:
            continue
        if cell.layer is None:
            outside[grid.outside.index(cell.part), 0] = value
        else:
            row = grid.parts.index((cell.module, cell.part))
            inside[row, grid.layers.index(cell.layer)] = value
    return inside, outside


def _limits(panel: _Panel, values: Table) -> tuple[float, float]:
    if panel.centre is None:
        return 0.0, float(np.nanmax(values)) or 1.0
    reach = max(float(np.nanmax(np.abs(values - panel.centre))), panel.least)
    return panel.centre - reach, panel.centre + reach


def _separate(axes: Axes, table: Table) -> None:
    """Thin white lines between rows, and between columns where they are wide."""
    rows, columns = table.shape
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8)
    if columns <= 40:
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.5)


def _number(axes: Axes, image: Any, table: Table, scale: int, *, digits: int) -> None:
    for (i, j), value in np.ndenumerate(table):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = f"{scale * value:.{digits}f}"
        if float(text) == 0.0:
            text = text.removeprefix("-")
        axes.text(
            j,
            i,
            text.replace("-", MINUS),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )


def _digits(panel: _Panel, peak: float) -> int:
    """Decimals that show two digits of the largest value, at most four."""
    if panel.percent:
        return 0
    if panel.centre is not None:
        return 2
    return next((digits for digits in (2, 3) if peak >= 10.0 ** (1 - digits)), 4)


def _part_label(module: str, part: str) -> str:
    return part if part == module else f"{module} {part}"


def _layer_ticks(layers: tuple[int, ...]) -> tuple[list[int], list[str]]:
    """Places and numbers: every layer when few, every fifth or tenth when many."""
    every = 1 if len(layers) <= 20 else 2 if len(layers) <= 40 else 5
    shown = [(at, str(layer)) for at, layer in enumerate(layers) if layer % every == 0]
    return [at for at, _ in shown], [name for _, name in shown]
