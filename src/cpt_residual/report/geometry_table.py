"""The geometry report as a table for a terminal: the whole model, module classes, layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rich.box import SIMPLE
from rich.table import Table

from cpt_residual.report.format import MISSING, cell, percent
from cpt_residual.weights.analysis.geometry import GeometryReport, GeometryRow

Column = tuple[str, Callable[[GeometryRow], str]]

_COLUMNS: tuple[Column, ...] = (
    ("elements", lambda row: _count(row.num_parameters)),
    ("norm\nbase", lambda row: _norm(row.base_norm)),
    ("norm CPT\ndelta", lambda row: _norm(row.cpt_delta_norm)),
    ("norm\nresidual", lambda row: _norm(row.residual_norm)),
    ("drift", lambda row: cell(row.drift, share=False)),
    ("cosine", lambda row: cell(row.cosine, share=False)),
    ("sign\nconflict", lambda row: percent(row.sign_conflict)),
    ("lost to\nbf16", lambda row: percent(row.lost_to_bf16)),
)
_INSTRUCT_COLUMNS: tuple[Column, ...] = (
    ("elements", lambda row: _count(row.num_parameters)),
    ("norm\ninstruct", lambda row: _norm(row.instruct_norm)),
    ("norm CPT\ndelta", lambda row: _norm(row.instruct_delta_norm)),
    ("drift", lambda row: cell(row.instruct_drift, share=False)),
    ("cosine with\nresidual", lambda row: cell(row.cosine_instruct, share=False)),
    ("cosine with\nCPT of base", lambda row: cell(row.cosine_deltas, share=False)),
)
_CAPTIONS = {
    "base": "drift: norm of the CPT delta / norm of the base; cosine and sign conflict: CPT delta "
    "against residual; lost to bf16: updates that rounding both models to bf16 undoes",
    "instruct": "drift: norm of the CPT delta of instruct / norm of instruct; cosine below 0: CPT "
    "undoes the residual",
}


def geometry_table(
    report: GeometryReport, *, layers: bool = True, cpt_of: Literal["base", "instruct"] = "base"
) -> Table:
    """One line for the whole model, one per module class and, if wanted, one per layer.

    Fits 80 columns. `cpt_of`: whose CPT the numbers are about; instruct's are dashes where it was
    not measured (`report.total.instruct_delta_norm` is None then)."""
    columns = _COLUMNS if cpt_of == "base" else _INSTRUCT_COLUMNS
    table = Table(
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 0),
        caption=_CAPTIONS[cpt_of],
        caption_justify="left",
    )
    table.add_column("part", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, row: GeometryRow, *, last: bool) -> None:
        table.add_row(name, *(text(row) for _, text in columns), end_section=last)

    add("whole model", report.total, last=True)
    modules = sorted(report.modules.items())
    for at, (name, row) in enumerate(modules, start=1):
        add(name, row, last=at == len(modules))
    for layer, row in sorted(report.layers.items()) if layers else ():
        add(f"layer {layer}", row, last=False)
    return table


def _count(number: int) -> str:
    """1,235,814,400 -> `1.24 B`; small numbers as they are."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def _norm(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"
