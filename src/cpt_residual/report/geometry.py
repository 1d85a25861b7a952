"""The measured geometry in the words of a report: whole-model numbers by name."""

from __future__ import annotations

from cpt_residual.config.schema import Roles
from cpt_residual.results.document import Geometry
from cpt_residual.weights.analysis.geometry import GeometryReport


def core_geometry(document: GeometryReport, roles: Roles) -> Geometry:
    """The geometry of the core models. Numbers that were not measured are left out; a CPT model's
    name stands for the update that CPT made to it."""
    total = document.total
    relative = total.residual_norm / total.base_norm if total.base_norm else None
    drift = {roles.base_cpt: total.drift, roles.instruct_cpt or "": total.instruct_drift}
    cosine = {
        f"residual, {roles.base_cpt}": total.cosine,
        f"residual, {roles.instruct_cpt}": total.cosine_instruct,
        f"{roles.base_cpt}, {roles.instruct_cpt}": total.cosine_deltas,
    }
    other = {
        "residual, norm relative to base": relative,
        "sign conflict between CPT update and residual": total.sign_conflict,
        "CPT updates lost when rounded to bf16": total.lost_to_bf16,
    }
    return Geometry(drift=_known(drift), cosine=_known(cosine), other=_known(other))


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name and value is not None}
