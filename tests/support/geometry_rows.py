"""Rows and cells of a geometry report with made-up numbers."""

from __future__ import annotations

from cpt_residual.weights.analysis.geometry import CellRow, GeometryRow
from cpt_residual.weights.maths.naming import ModuleClass

PARTS: tuple[tuple[ModuleClass, str], ...] = (
    ("norm", "norm"),
    ("mlp", "down"),
    ("attention", "o"),
    ("attention", "q"),
)


def row(drift: float | None = 0.05, **changes: float | None) -> GeometryRow:
    values: dict[str, float | None] = {
        "num_parameters": 10,
        "base_norm": 2.0,
        "cpt_delta_norm": 0.1,
        "residual_norm": 0.5,
        "drift": drift,
        "cosine": -0.1,
        "sign_conflict": 0.6,
        "lost_to_bf16": 0.3,
        "instruct_norm": 2.0,
        "instruct_delta_norm": None,
        "instruct_drift": None,
        "cosine_deltas": None,
        "cosine_instruct": None,
    }
    return GeometryRow.model_validate(values | changes)


def cells(num_layers: int) -> list[CellRow]:
    inside = [
        CellRow(layer=layer, module=module, part=part, **dict(row(drift=(layer + 1) / 1000)))
        for layer in range(num_layers)
        for module, part in PARTS
    ]
    outside: tuple[ModuleClass, ...] = ("head", "embeddings", "norm")
    return inside + [CellRow(layer=None, module=m, part=m, **dict(row(0.2))) for m in outside]
