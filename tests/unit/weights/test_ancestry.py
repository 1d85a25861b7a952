"""How near two bases are, and what a user is told about it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.analysis.model_distance import NUM_FARTHEST, Ancestry, measure, warnings
from cpt_residual.weights.io.checkpoint import Checkpoint
from support.pico_family import Tensors, fake_model, opened

EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def moved(tensors: Tensors, scale: float, *, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + (scale * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for name, value in tensors.items()
    }


def model(root: Path, role: str, tensors: Tensors, *, num_shards: int = 1) -> Checkpoint:
    return opened(fake_model(root / role, tensors, num_shards=num_shards), role)


def between(root: Path, left: Tensors, right: Tensors) -> Ancestry:
    return measure(model(root, "base_3_1", left), model(root, "base_3", right))


def test_the_numbers(tmp_path: Path, tensors: Tensors) -> None:
    other = moved(tensors, 0.3)
    other["model.layers.0.self_attn.q_proj.weight"] = tensors[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    found = between(tmp_path, tensors, other)
    left = torch.cat([value.double().flatten() for value in tensors.values()])
    right = torch.cat([other[name].double().flatten() for name in tensors])
    distance = float((right - left).norm())
    assert (found.base, found.other, found.num_parameters) == ("base_3_1", "base_3", 108)
    assert found.num_rows_left_out == 0
    assert found.base_norm == pytest.approx(float(left.norm()), rel=1e-12)
    assert found.distance == pytest.approx(distance, rel=1e-12)
    assert found.relative_distance == pytest.approx(distance / float(left.norm()), rel=1e-12)
    cosine = float(left @ right / left.norm() / right.norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.equal_share == float((left == right).double().mean())
    expected = {
        name: float((other[name].double() - value.double()).norm() / value.double().norm())
        for name, value in tensors.items()
    }
    ranked = sorted(expected, key=lambda name: -expected[name])[:NUM_FARTHEST]
    assert [tensor.name for tensor in found.farthest] == ranked
    for tensor in found.farthest:
        assert tensor.relative_distance == pytest.approx(expected[tensor.name], rel=1e-12)


def test_a_model_and_itself(tmp_path: Path, tensors: Tensors) -> None:
    tensors[UP] = torch.zeros_like(tensors[UP])
    found = between(tmp_path, tensors, tensors)
    assert (found.relative_distance, found.equal_share) == (0.0, 1.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert warnings(found, residual_norm=1e-9) == []


def test_a_tensor_that_was_zero_is_farthest(tmp_path: Path, tensors: Tensors) -> None:
    found = between(tmp_path, tensors | {UP: torch.zeros_like(tensors[UP])}, tensors)
    assert found.farthest[0].name == UP
    assert found.farthest[0].relative_distance is None
    assert any(f"{UP} not defined" in line for line in warnings(found))


def test_vocabularies_of_different_size_are_compared_on_their_first_rows(
    tmp_path: Path, tensors: Tensors
) -> None:
    grown = dict(tensors)
    for name in ("lm_head.weight", EMBEDDING):
        more = torch.full((3, 4), 100.0, dtype=torch.bfloat16)
        grown[name] = torch.cat([tensors[name], more])
    for left, right in ((tensors, grown), (grown, tensors)):
        found = between(tmp_path / str(len(left[EMBEDDING])), left, right)
        assert found.relative_distance == 0.0
        assert (found.num_parameters, found.num_rows_left_out) == (108, 6)
        assert warnings(found) == [
            "6 vocabulary rows that only one of base_3_1 and base_3 has are in none of these "
            "numbers"
        ]


def test_other_architectures_and_shapes_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    base = model(tmp_path, "base", tensors)
    wide = tensors | {UP: torch.zeros(8, 4, dtype=torch.bfloat16)}
    with pytest.raises(CompatibilityError, match=r"up_proj.weight: base \(6, 4\) vs wide \(8, 4\)"):
        measure(base, model(tmp_path, "wide", wide))
    folder = fake_model(tmp_path / "qwen", tensors, config={"model_type": "qwen2"})
    with pytest.raises(CompatibilityError, match="model_type: base llama vs other qwen2"):
        measure(base, opened(folder, "other"))


def test_nan_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    other = moved(tensors, 0.1)
    other[UP][0, 0] = torch.nan
    with pytest.raises(
        CompatibilityError, match=r"up_proj.weight: NaN or Inf in one of base_3_1, "
    ):
        between(tmp_path, tensors, other)


def scaled(tensors: Tensors, factor: float) -> Tensors:
    return {name: (factor * value.float()).float() for name, value in tensors.items()}


@pytest.mark.parametrize(("distance", "warned"), [(0.079, False), (0.081, True), (0.3, True)])
def test_the_threshold(tmp_path: Path, tensors: Tensors, distance: float, warned: bool) -> None:
    found = between(tmp_path, scaled(tensors, 1.0), scaled(tensors, 1.0 + distance))
    assert found.relative_distance == pytest.approx(distance, rel=1e-4)
    lines = warnings(found, residual_norm=1e9)
    assert len(lines) == warned
    if warned:
        assert lines == [
            "the residual was made for weights (base_3_1) at a relative distance of "
            f"{distance:.2f} (cosine 1.00, 0.0 % of elements equal) from these (base_3); "
            "BonLM (2026) saw alpha = 1 hurt at a drift of 0.18 and help at 0.08"
        ]


def test_a_distance_longer_than_the_residual_is_said(tmp_path: Path, tensors: Tensors) -> None:
    found = between(tmp_path, scaled(tensors, 1.0), scaled(tensors, 1.3))
    lines = warnings(found, residual_norm=found.distance / 4)
    assert len(lines) == 2
    assert "is 4 times the norm of the residual" in lines[1]
    assert len(warnings(found, residual_norm=0.0)) == 1


def test_strangers_are_named(tmp_path: Path, tensors: Tensors) -> None:
    shuffled = tensors | {EMBEDDING: tensors[EMBEDDING].flip(0)}
    (line,) = (
        line
        for line in warnings(between(tmp_path / "rows", tensors, shuffled))
        if "rows are in another order" in line
    )
    assert EMBEDDING in line
    assert UP not in line
    strangers = moved({name: torch.zeros_like(value) for name, value in tensors.items()}, 1.0)
    found = between(tmp_path / "strangers", tensors, strangers)
    assert found.relative_distance == pytest.approx(math.sqrt(2), rel=0.2)
    assert any("do not look like descendants of one" in line for line in warnings(found))
