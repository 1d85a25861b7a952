"""The measured geometry in the words of a report: whole-model numbers and one line per tensor."""

from __future__ import annotations

from pathlib import Path

from cpt_residual.report.facts import Geometry, RoleNames, TensorGeometry
from cpt_residual.weights.geometry import GeometryReport, GeometryRow


def read_geometry(path: Path, roles: RoleNames) -> Geometry:
    """The geometry of the core models. Numbers that were not measured are left out."""
    document = GeometryReport.model_validate_json(path.read_bytes())
    total = document.total
    other = {
        "residual, norm relative to base": _share(total.residual_norm, total.base_norm),
        "sign conflict between CPT update and residual": total.sign_conflict,
        "CPT updates lost when rounded to bf16": total.lost_to_bf16,
    }
    return Geometry(
        drift=_drift(total, roles),
        cosine=_cosine(total, roles),
        other={name: value for name, value in other.items() if value is not None},
        tensors=tuple(
            TensorGeometry(
                tensor=tensor.name,
                layer=tensor.layer,
                module=_module(tensor.name),
                values={f"drift {k}": v for k, v in _drift(tensor, roles).items()}
                | {f"cosine {k}": v for k, v in _cosine(tensor, roles).items()},
            )
            for tensor in document.tensors
        ),
        cells=tuple(document.cells),
    )


def _drift(row: GeometryRow, roles: RoleNames) -> dict[str, float]:
    pairs = ((roles.base_cpt, row.drift), (roles.instruct_cpt, row.instruct_drift))
    return {name: value for name, value in pairs if name is not None and value is not None}


def _cosine(row: GeometryRow, roles: RoleNames) -> dict[str, float]:
    """A CPT model's name stands for the update that CPT made to it."""
    pairs = (
        (f"residual, {roles.base_cpt}", row.cosine),
        (f"residual, {roles.instruct_cpt}", row.cosine_instruct),
        (f"{roles.base_cpt}, {roles.instruct_cpt}", row.cosine_deltas),
    )
    return {name: value for name, value in pairs if value is not None}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _module(tensor: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `q_proj`; a bias keeps its suffix."""
    parts = tensor.split(".")
    if len(parts) < 2:
        return tensor
    return parts[-2] if parts[-1] == "weight" else f"{parts[-2]}.{parts[-1]}"
