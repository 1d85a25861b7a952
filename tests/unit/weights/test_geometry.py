"""The numbers of the geometry report against plain numpy on whole models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.analysis.geometry import Family, GeometryReport, measure, part_of
from cpt_residual.weights.io.reader import Streaming
from cpt_residual.weights.maths.arithmetic import cosine, relative_norm, round_once, to_float64
from cpt_residual.weights.maths.geometry_kernels import FamilySums, family_sums, pair_sums
from support.pico_family import Tensors, fake_model, opened
from support.raw import raw_of

Wide = npt.NDArray[np.float64]


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


def family_of(root: Path, models: dict[str, Tensors], *, num_shards: int = 1) -> Family:
    return Family(
        **{
            role: opened(fake_model(root / role, model, num_shards=num_shards), role)
            for role, model in models.items()
        }
    )


def test_the_numbers(tmp_path: Path, models: dict[str, Tensors]) -> None:
    report = measure(family_of(tmp_path, models))
    base, instruct, cpt, instruct_cpt = (flat(model) for model in models.values())
    delta, residual, instruct_delta = cpt - base, instruct - base, instruct_cpt - instruct
    total = report.total
    assert total.num_parameters == 108
    assert total.base_norm == pytest.approx(float(base.norm()), rel=1e-12)
    assert total.instruct_norm == pytest.approx(float(instruct.norm()), rel=1e-12)
    assert total.cpt_delta_norm == pytest.approx(float(delta.norm()), rel=1e-12)
    assert total.residual_norm == pytest.approx(float(residual.norm()), rel=1e-12)
    assert total.drift == pytest.approx(float(delta.norm() / base.norm()), rel=1e-12)
    assert total.cosine == pytest.approx(cos(delta, residual), abs=1e-12)
    assert total.sign_conflict == pytest.approx(float((delta * residual < 0).double().mean()))
    assert total.cosine_deltas == pytest.approx(cos(delta, instruct_delta), abs=1e-12)
    assert total.cosine_instruct == pytest.approx(cos(instruct_delta, residual), abs=1e-12)
    assert total.instruct_delta_norm == pytest.approx(float(instruct_delta.norm()), rel=1e-12)
    drift = float(instruct_delta.norm() / instruct.norm())
    assert total.instruct_drift == pytest.approx(drift, rel=1e-12)
    lost = (base != cpt) & (base.bfloat16() == cpt.bfloat16())
    assert 0.1 < float(lost.double().mean()) < 1.0
    assert total.lost_to_bf16 == pytest.approx(float(lost.sum() / (base != cpt).sum()))


def test_the_groups(tmp_path: Path, models: dict[str, Tensors]) -> None:
    report = measure(family_of(tmp_path, models))
    assert [row.name for row in report.tensors] == sorted(models["base"])
    assert set(report.modules) == {"attention", "mlp", "embeddings", "head", "norm"}
    assert set(report.layers) == {0}
    assert report.layers[0].num_parameters == 44
    for rows in (report.modules.values(), report.cells):
        squares = sum(row.cpt_delta_norm**2 for row in rows)
        assert squares == pytest.approx(report.total.cpt_delta_norm**2)
    assert {(cell.layer, cell.module, cell.part) for cell in report.cells} == {
        (None, "head", "head"),
        (None, "embeddings", "embeddings"),
        (0, "norm", "norm"),
        (0, "mlp", "up"),
        (0, "attention", "q"),
    }
    by_part = {cell.part: cell.model_dump() for cell in report.cells}
    of_q = next(row for row in report.tensors if "q_proj" in row.name).model_dump()
    assert by_part["q"].items() >= {k: v for k, v in of_q.items() if k != "name"}.items()


def test_a_report_from_before_there_were_cells_is_read(
    tmp_path: Path, models: dict[str, Tensors]
) -> None:
    report = measure(family_of(tmp_path, models))
    document = json.loads(report.model_dump_json())
    del document["cells"]
    assert GeometryReport.model_validate(document) == report.model_copy(update={"cells": []})


def test_blocks_threads_and_shards_do_not_change_the_numbers(
    tmp_path: Path, models: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_of(tmp_path / "one", models)
    expected = measure(family, streaming=Streaming(threads=1))
    split = family_of(tmp_path / "three", models, num_shards=3)
    assert measure(split, streaming=Streaming(threads=3)) == expected
    for block in (1, 5, 16, 31):
        monkeypatch.setattr("cpt_residual.weights.io.reader.BLOCK", block)
        found = measure(family)
        assert measure(split, streaming=Streaming(threads=3)) == found
        for row, wanted in zip(found.tensors, expected.tensors, strict=True):
            assert row.sign_conflict == wanted.sign_conflict
            assert row.lost_to_bf16 == wanted.lost_to_bf16
            for name in ("drift", "cosine", "residual_norm", "instruct_drift", "cosine_deltas"):
                assert getattr(row, name) == pytest.approx(getattr(wanted, name), rel=1e-12)


def test_tied_tensors_count_once(tmp_path: Path, models: dict[str, Tensors]) -> None:
    untied = {
        role: {name: value for name, value in model.items() if name != "lm_head.weight"}
        for role, model in models.items()
    }
    stored_twice = {
        role: model | {"lm_head.weight": model["model.embed_tokens.weight"].clone()}
        for role, model in untied.items()
    }
    config = {"tie_word_embeddings": True}

    def reports(name: str, family: dict[str, Tensors]) -> GeometryReport:
        folders = {r: fake_model(tmp_path / name / r, m, config=config) for r, m in family.items()}
        return measure(Family(**{role: opened(folder, role) for role, folder in folders.items()}))

    assert reports("once", untied) == reports("twice", stored_twice)
    assert reports("again", untied).total.num_parameters == 76


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


@pytest.mark.parametrize("role", ["base", "instruct", "base_cpt", "instruct_cpt"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_refused(
    tmp_path: Path, models: dict[str, Tensors], role: str, value: float
) -> None:
    models[role]["lm_head.weight"][0, 0] = value
    with pytest.raises(CompatibilityError, match=r"lm_head.weight: NaN or Inf in one of base, ins"):
        measure(family_of(tmp_path, models))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "q"),
        ("model.layers.3.self_attn.k_proj.bias", "k"),
        ("model.layers.3.self_attn.v_proj.weight", "v"),
        ("model.layers.3.self_attn.o_proj.weight", "o"),
        ("model.layers.3.self_attn.qkv_proj.weight", "q/k/v"),
        ("transformer.h.1.attn.c_attn.weight", "q/k/v"),
        ("transformer.h.1.attn.c_proj.weight", "o"),
        ("transformer.h.1.mlp.c_fc.weight", "up"),
        ("transformer.h.1.mlp.c_proj.weight", "down"),
        ("model.layers.0.mlp.gate_proj.weight", "gate"),
        ("model.layers.0.mlp.up_proj.weight", "up"),
        ("model.layers.0.mlp.down_proj.weight", "down"),
        ("model.layers.0.mlp.gate_up_proj.weight", "gate/up"),
        ("model.layers.0.mlp.experts.7.down_proj.weight", "down"),
        ("model.layers.0.mlp.router.weight", "mlp"),
        ("model.layers.12.self_attn.q_norm.weight", "norm"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert part_of(name, {}) == part


def test_edges_of_the_measures() -> None:
    assert cosine(1.0, 0.0, 4.0) is None
    assert cosine(2.0, 1.0, 4.0) == 1.0
    assert relative_norm(1.0, 0.0) is None


def test_what_is_lost_to_bf16() -> None:
    start = np.array([1.0, 1.0, 1.0, 0.0, 1e-45, 1.0 + 2.0**-8], np.float32)
    end = np.array([1.0, 1.0 + 2.0**-12, 1.5, -0.0, -1e-45, 1.0], np.float32)
    sums = family_sums(start, start, end)
    assert (sums.num_updates, sums.num_lost) == (4, 3)  # not counted: equal, and 0 against -0
    assert (sums.num_both, sums.num_conflicts) == (0, 0)


def naive(base: Wide, instruct: Wide, cpt: Wide, instruct_cpt: Wide | None) -> FamilySums:
    delta, residual = cpt - base, instruct - base
    other = np.zeros_like(base) if instruct_cpt is None else instruct_cpt - instruct
    same = to_float64(round_once(base, "BF16")) == to_float64(round_once(cpt, "BF16"))
    return FamilySums(
        base.size,
        *(
            float(np.dot(x, y))
            for x, y in (
                (base, base),
                (instruct, instruct),
                (delta, delta),
                (residual, residual),
                (delta, residual),
                (other, other),
                (delta, other),
                (other, residual),
            )
        ),
        num_both=int(np.count_nonzero((delta != 0) & (residual != 0))),
        num_conflicts=int(np.count_nonzero(np.sign(delta) * np.sign(residual) < 0)),
        num_updates=int(np.count_nonzero(delta)),
        num_lost=int(np.count_nonzero((delta != 0) & same)),
    )


DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 70),
    dtype=DTYPES,
    cpt_dtype=DTYPES,
    scale=st.sampled_from([1e-6, 1e-3, 1.0]),
    seed=st.integers(0, 2**31),
    four=st.booleans(),
)
def test_the_kernel_against_numpy(
    size: int, dtype: torch.dtype, cpt_dtype: torch.dtype, scale: float, seed: int, four: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    moved = [base + scale * torch.randn(size, generator=generator) for _ in range(3)]
    kinds = (dtype, dtype, cpt_dtype, cpt_dtype)
    raws = [raw_of(v.to(k)) for v, k in zip([base, *moved], kinds, strict=True)]
    last = raws[3] if four else None
    found = family_sums(raws[0], raws[1], raws[2], last)
    wide = [to_float64(raw) for raw in raws]
    expected = naive(wide[0], wide[1], wide[2], wide[3] if four else None)
    assert found[0] == expected[0]
    assert found[9:] == expected[9:]
    # A dot product's rounding error is relative to the product of the norms, not to itself.
    largest = max(expected[1:9], default=0.0)
    assert found[1:9] == pytest.approx(expected[1:9], rel=1e-12, abs=1e-14 * largest)


def test_the_pair_kernel_against_numpy() -> None:
    generator = torch.Generator().manual_seed(4)
    left = torch.randn(1003, generator=generator)
    right = torch.where(torch.rand(1003, generator=generator) < 0.3, left, left + 0.1)
    for kinds in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)):
        raws = [raw_of(v.to(k)) for v, k in zip((left, right), kinds, strict=True)]
        one, two = (to_float64(raw) for raw in raws)
        found = pair_sums(*raws)
        assert (found.num_elements, found.num_equal) == (1003, np.count_nonzero(one == two))
        expected = [one @ one, two @ two, (two - one) @ (two - one), one @ two]
        assert found[1:5] == pytest.approx(expected, rel=1e-12)
