"""Direct labels that do not overlap: each goes to the nearest free place around its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg

from cpt_residual.report.style import Axes

_DISTANCES = (11.0, 15.0, 22.0, 32.0, 44.0, 58.0, 76.0, 98.0)
"""Points from the centre of a marker to the edge of its label."""
_ANGLES = tuple(k * pi / 8 for k in (0, 8, 4, 12, 2, 6, 14, 10, 1, 7, 15, 9, 3, 5, 13, 11))
_MARKER_RADIUS = 6.0
_LINE_RADIUS = 2.0
_TEXT_PRICE = 20.0  # covering a label is this much worse than covering a marker or a line
_LEADER_FROM = 14.0


class Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class PointLabel:
    """Text for the point (x, y) in data units."""

    x: float
    y: float
    text: str
    colour: str
    size: float = 9.0
    bold: bool = False


def label_points(
    axes: Axes, labels: Sequence[PointLabel], obstacles: Sequence[tuple[float, float]] = ()
) -> None:
    """Annotate every point; `obstacles` are further data points to keep free.

    Deterministic: labels are placed in the given order, each at the first candidate that meets
    no marker, no obstacle and no earlier label, else at the one with the least overlap.
    """
    figure = axes.get_figure()
    assert figure is not None
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    radius = _MARKER_RADIUS * scale
    spots = [*((p.x, p.y) for p in labels), *obstacles]
    centres = [tuple(map(float, axes.transData.transform(spot))) for spot in spots]
    sizes = [radius] * len(labels) + [_LINE_RADIUS * scale] * len(obstacles)
    taken = [_box(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(centres, sizes, strict=True)]
    written: list[Box] = []
    window = axes.get_window_extent()
    frame = Box(window.x0, window.y0, window.x1, window.y1)
    for index, label in enumerate(labels):
        width, height = _extent(axes, label, canvas)
        x, y = centres[index]
        best: tuple[float, Box, float] | None = None
        for distance in _DISTANCES:
            for angle in _ANGLES:
                box = _around(x, y, angle, distance * scale, width, height)
                price = sum(_overlap(box, b) for i, b in enumerate(taken) if i != index)
                price += _TEXT_PRICE * sum(_overlap(box, other) for other in written)
                price += _outside(box, frame)
                if best is None or price < best[0] - 1e-6:
                    best = (price, box, distance)
            if best is not None and best[0] == 0:
                break
        assert best is not None
        _annotate(axes, label, best[1], (x, y), scale)
        written.append(best[1])


def along(
    start: tuple[float, float], end: tuple[float, float], *, steps: int = 40
) -> list[tuple[float, float]]:
    """Points on the segment from `start` to `end`, as obstacles for labels."""
    (x0, y0), (x1, y1) = start, end
    shares = [step / steps for step in range(steps + 1)]
    return [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]


def error_bars(x: float, y: float, dx: float | None, dy: float | None) -> list[tuple[float, float]]:
    """Points on the error bars of (x, y), as obstacles for labels."""
    found: list[tuple[float, float]] = []
    if dx:
        found += along((x - dx, y), (x + dx, y), steps=12)
    if dy:
        found += along((x, y - dy), (x, y + dy), steps=12)
    return found


def _annotate(
    axes: Axes, label: PointLabel, box: Box, centre: tuple[float, ...], scale: float
) -> None:
    dx = ((box.x0 + box.x1) / 2 - centre[0]) / scale
    dy = ((box.y0 + box.y1) / 2 - centre[1]) / scale
    near = hypot(
        max(box.x0 - centre[0], 0.0, centre[0] - box.x1),
        max(box.y0 - centre[1], 0.0, centre[1] - box.y1),
    )
    leader = near / scale > _LEADER_FROM
    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=label.size,
        color=label.colour,
        fontweight="bold" if label.bold else "normal",
        arrowprops={
            "arrowstyle": "-",
            "color": label.colour,
            "linewidth": 0.7,
            "shrinkB": 4,
            "shrinkA": 0,
        }
        if leader
        else None,
    )
    note.set_in_layout(False)


def _extent(axes: Axes, label: PointLabel, canvas: FigureCanvasAgg) -> tuple[float, float]:
    probe = axes.text(
        0.5,
        0.5,
        label.text,
        transform=axes.transAxes,
        fontsize=label.size,
        fontweight="bold" if label.bold else "normal",
    )
    box = probe.get_window_extent(canvas.get_renderer())
    probe.remove()
    return box.width + 3, box.height + 3


def _around(x: float, y: float, angle: float, distance: float, width: float, height: float) -> Box:
    """A box whose nearest edge is about `distance` from (x, y) in direction `angle`."""
    cx = x + cos(angle) * (distance + width / 2)
    cy = y + sin(angle) * (distance + height / 2)
    return _box(cx - width / 2, cy - height / 2, width, height)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x, y, x + width, y + height)


def _overlap(a: Box, b: Box) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Box) -> float:
    """Price of leaving the axes, dearer than any overlap."""
    over = (
        max(frame.x0 - box.x0, 0.0)
        + max(box.x1 - frame.x1, 0.0)
        + max(frame.y0 - box.y0, 0.0)
        + max(box.y1 - frame.y1, 0.0)
    )
    return 100.0 * over
