"""The numbers of the geometry report against plain torch on whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.arithmetic import cosine, num_lost_to_bf16, relative_norm
from cpt_residual.weights.geometry import Family, layer_of, measure, module_of
from support.pico_family import Tensors, fake_model, opened


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


def cos(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(left @ right / left.norm() / right.norm())


@pytest.fixture
def models(tensors: Tensors) -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(9)
    base = {name: value.float() for name, value in tensors.items()}

    def moved(start: Tensors, scale: float) -> Tensors:
        return {
            name: value + scale * torch.randn(value.shape, generator=generator)
            for name, value in start.items()
        }

    instruct = moved(base, 0.01)
    return {
        "base": base,
        "instruct": instruct,
        "base_cpt": moved(base, 0.001),
        "instruct_cpt": moved(instruct, 0.002),
    }


def family_of(root: Path, models: dict[str, Tensors]) -> Family:
    return Family(
        **{role: opened(fake_model(root / role, model), role) for role, model in models.items()}
    )


def test_the_numbers(tmp_path: Path, models: dict[str, Tensors]) -> None:
    report = measure(family_of(tmp_path, models))
    base, instruct, cpt, instruct_cpt = (flat(model) for model in models.values())
    delta, residual = cpt - base, instruct - base
    total = report.total
    assert total.num_parameters == 108
    assert total.base_norm == pytest.approx(float(base.norm()))
    assert total.cpt_delta_norm == pytest.approx(float(delta.norm()), rel=1e-6)
    assert total.residual_norm == pytest.approx(float(residual.norm()), rel=1e-6)
    assert total.drift == pytest.approx(float(delta.norm() / base.norm()), rel=1e-6)
    assert total.cosine == pytest.approx(cos(delta, residual), abs=1e-6)
    assert total.sign_conflict == pytest.approx(float((delta * residual < 0).double().mean()))
    assert total.cosine_deltas == pytest.approx(cos(delta, instruct_cpt - instruct), abs=1e-6)
    drift = float((instruct_cpt - instruct).norm() / instruct.norm())
    assert total.instruct_drift == pytest.approx(drift, rel=1e-6)
    assert 0.1 < (total.lost_to_bf16 or 0.0) < 1.0
    assert [row.name for row in report.tensors] == sorted(models["base"])
    assert set(report.modules) == {"attention", "mlp", "embeddings", "head", "norm"}
    assert set(report.layers) == {0}
    assert report.layers[0].num_parameters == 44
    squares = sum(row.cpt_delta_norm**2 for row in report.modules.values())
    assert squares == pytest.approx(total.cpt_delta_norm**2)


def test_without_instruct_cpt_and_without_movement(
    tmp_path: Path, models: dict[str, Tensors]
) -> None:
    del models["instruct_cpt"]
    models["base_cpt"] = models["base"]
    family = family_of(tmp_path, models)
    report = measure(family)
    assert report.total.drift == 0.0
    nothing = ("cosine", "sign_conflict", "lost_to_bf16", "instruct_drift", "cosine_deltas")
    assert [getattr(report.total, name) for name in nothing] == [None] * 5
    assert report == measure(family)


def test_nan_is_refused(tmp_path: Path, models: dict[str, Tensors]) -> None:
    models["base_cpt"]["lm_head.weight"][0, 0] = torch.nan
    with pytest.raises(CompatibilityError, match=r"lm_head.weight: NaN or Inf in one of base, ins"):
        measure(family_of(tmp_path, models))


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("model.layers.12.self_attn.q_norm.weight", "norm", 12),
        ("model.layers.3.post_attention_layernorm.weight", "norm", 3),
        ("model.layers.3.self_attn.q_proj.bias", "attention", 3),
        ("model.layers.0.mlp.gate_proj.weight", "mlp", 0),
        ("model.norm.weight", "norm", None),
        ("transformer.h.1.ln_1.weight", "norm", 1),
        ("transformer.wte.weight", "embeddings", None),
        ("lm_head.weight", "head", None),
        ("something", "other", None),
    ],
)
def test_names(name: str, module: str, layer: int | None) -> None:
    assert module_of(name) == module
    assert layer_of(name) == layer


def test_edges_of_the_measures() -> None:
    assert cosine(1.0, 0.0, 4.0) is None
    assert cosine(2.0, 1.0, 4.0) == 1.0
    assert relative_norm(1.0, 0.0) is None
    start = torch.tensor([1.0, 1.0, 1.0])
    end = torch.tensor([1.0, 1.0 + 2.0**-12, 1.5])
    assert num_lost_to_bf16(start, end) == (1, 2)
