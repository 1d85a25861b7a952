"""Heat maps and table of a geometry report: what is drawn where."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cpt_residual.report.geometry_table import geometry_table
from cpt_residual.report.heatmaps import draw_heatmaps, heatmap_figure
from cpt_residual.report.style import Axes
from cpt_residual.weights.analysis.geometry import CellRow, GeometryReport
from support.geometry_rows import cells, row


def report(num_layers: int = 3, **changes: float | None) -> GeometryReport:
    return GeometryReport(
        total=row(**changes),
        modules={"mlp": row(), "attention": row(**changes)},
        layers={layer: row(drift=layer / 10) for layer in range(num_layers)},
        tensors=[],
        cells=cells(num_layers),
    )


def panels(given: list[CellRow]) -> list[tuple[Axes, Axes]]:
    """(grid, strip) of each panel, without the colour bars."""
    figure = heatmap_figure(given)
    assert figure is not None
    axes = [a for a in figure.axes if a.get_label() != "<colorbar>"]
    return list(zip(axes[::2], axes[1::2], strict=True))


def drawn(axes: Axes) -> np.ma.MaskedArray:
    return axes.images[0].get_array()


def texts(labels: list[object]) -> list[str]:
    return [label.get_text() for label in labels]  # type: ignore[attr-defined]


def test_cells_lie_where_their_names_say() -> None:
    grid, strip = panels(cells(3))[0]
    wanted = ["attention q", "attention o", "mlp down", "norm"]
    assert texts(grid.get_yticklabels()) == wanted
    assert texts(strip.get_yticklabels()) == ["embeddings", "final norm", "head"]
    assert np.array_equal(drawn(grid), np.tile([0.001, 0.002, 0.003], (4, 1)))
    assert np.array_equal(drawn(strip), np.full((3, 1), 0.2))
    assert drawn(panels(cells(3))[1][0])[0, 0] == 0.25  # residual relative to base


def test_diverging_scales_are_centred() -> None:
    _, _, (cosine, strip), (conflict, _), (lost, _) = panels(cells(2))
    assert cosine.images[0].get_clim() == strip.images[0].get_clim() == (-0.2, 0.2)
    assert conflict.images[0].get_clim() == pytest.approx((0.4, 0.6))
    assert lost.images[0].get_clim() == (0.0, 0.3)
    wide = [cell.model_copy(update={"cosine": -0.7}) for cell in cells(2)]
    assert panels(wide)[2][0].images[0].get_clim() == (-0.7, 0.7)


def test_missing_cells_are_masked_and_measures_without_values_have_no_panel() -> None:
    some = [c for c in cells(3) if (c.layer, c.part) != (1, "o")]
    for at, (grid, _) in enumerate(panels(some)):
        masked = np.ma.getmaskarray(drawn(grid)) | np.isnan(np.ma.getdata(drawn(grid)))
        assert np.argwhere(masked).tolist() == [[1, 1]], at
        assert grid.patch.get_hatch()
    none = [c.model_copy(update={"lost_to_bf16": None, "cosine": None}) for c in cells(3)]
    titles = [grid.get_title(loc="left") for grid, _ in panels(none)]
    assert len(titles) == 3
    assert not any("Cosine" in title or "lost" in title for title in titles)


def test_numbers_in_cells_of_small_models_only() -> None:
    grid, strip = panels(cells(16))[0]
    assert texts(grid.texts)[:2] == ["0.00", "0.00"]
    assert texts(panels(cells(16))[2][0].texts)[0] == "\N{MINUS SIGN}0.10"
    assert texts(panels(cells(16))[3][0].texts)[0] == "60"
    grid, strip = panels(cells(17))[0]
    assert not grid.texts
    assert texts(strip.texts) == ["0.20"] * 3


@pytest.mark.parametrize(("num_layers", "num_ticks"), [(16, 16), (32, 16), (80, 16)])
def test_layers_are_readable(num_layers: int, num_ticks: int) -> None:
    figure = heatmap_figure(cells(num_layers))
    assert figure is not None
    assert figure.get_size_inches()[0] < 16
    grid, _ = panels(cells(num_layers))[0]
    assert len(grid.get_xticks()) == num_ticks


def test_a_model_without_layers_or_without_the_rest() -> None:
    given = cells(2)
    assert len(panels([cell for cell in given if cell.layer is None])) == 5
    assert len(panels([cell for cell in given if cell.layer is not None])) == 5


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    (first,) = draw_heatmaps(report(), tmp_path / "a")
    (second,) = draw_heatmaps(report(), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert draw_heatmaps(report().model_copy(update={"cells": []}), tmp_path / "c") == []
    assert not (tmp_path / "c").exists()


def printed(given: GeometryReport, **options: bool | str) -> list[str]:
    out = StringIO()
    Console(file=out, width=80).print(geometry_table(given, **options))  # type: ignore[arg-type]
    return out.getvalue().splitlines()


def test_the_table() -> None:
    lines = printed(report(num_parameters=1_235_814_400))
    (whole,) = (line for line in lines if "whole model" in line)
    numbers = "1.24 B 2 0.1 0.5 0.050 \N{MINUS SIGN}0.100 60.0 % 30.0 %"
    assert " ".join(whole.split()) == f"whole model {numbers}"
    body = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in body  # nothing is cut at 80 columns
    places = [body.index(name) for name in ("whole model", "attention", "mlp", "layer 0")]
    assert places == sorted(places)
    assert sum("layer " in line for line in lines) == 3
    assert not any("layer " in line for line in printed(report(), layers=False))


def test_the_table_of_instruct() -> None:
    lines = printed(report(instruct_delta_norm=0.2, instruct_drift=0.123), cpt_of="instruct")
    (whole,) = (line for line in lines if "whole model" in line)
    dash = "\N{EN DASH}"
    assert whole.split() == ["whole", "model", "10", "2", "0.2", "0.123", dash, dash]
