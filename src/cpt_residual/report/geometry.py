"""geometry.json, read at the door: whole-model numbers and one line per tensor."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cpt_residual.report.facts import Geometry, RoleNames, TensorGeometry


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    drift: float | None
    cosine: float | None
    sign_conflict: float | None
    lost_to_bf16: float | None
    base_norm: float
    residual_norm: float
    instruct_drift: float | None
    cosine_deltas: float | None
    cosine_instruct: float | None = None


class _Tensor(_Row):
    name: str
    layer: int | None


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    total: _Row
    tensors: list[_Tensor]


def read_geometry(path: Path, roles: RoleNames) -> Geometry:
    """The geometry of the core models. Numbers that were not measured are left out."""
    document = _Document.model_validate_json(path.read_bytes())
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
    )


def _drift(row: _Row, roles: RoleNames) -> dict[str, float]:
    pairs = ((roles.base_cpt, row.drift), (roles.instruct_cpt, row.instruct_drift))
    return {name: value for name, value in pairs if name is not None and value is not None}


def _cosine(row: _Row, roles: RoleNames) -> dict[str, float]:
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
