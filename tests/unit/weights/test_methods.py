from __future__ import annotations

import numpy as np
import pytest

from cpt_residual.errors import CompatibilityError, ConfigError
from cpt_residual.methods.dare import dare_factors
from cpt_residual.methods.low_rank import low_rank, low_rank_rows
from cpt_residual.methods.ties import magnitude_threshold, num_to_keep, ties
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.maths.strengths import (
    projection_alpha,
    require_known_scales,
    scale_of,
    special_token_rows,
)

NAMES = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.norm.weight",
]
ROWS: dict[str, RowPart] = {"lm_head.weight": "head", "model.embed_tokens.weight": "embeddings"}


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# --- DARE
def test_the_dare_choice_is_the_same_for_ever() -> None:
    """A change here changes what every recorded seed means."""
    factors = dare_factors("model.norm.weight", 2, 40, drop_rate=0.5, seed=7)
    kept = "".join("x" if factor else "." for factor in factors)
    assert kept == "xx...x.............xx..x.xx..x.xx....xx."


def test_dare_without_drops_changes_nothing() -> None:
    assert dare_factors("w", 3, 5, drop_rate=0.0, seed=0).tolist() == [1.0] * 5
    assert dare_factors("w", 3, 0, drop_rate=0.5, seed=0).size == 0


# --- TIES
def test_num_to_keep_reads_the_density_as_written() -> None:
    assert [num_to_keep(100, density) for density in (0.07, 0.2, 0.201, 1.0)] == [7, 20, 21, 100]
    assert num_to_keep(3, 1e-9) == 1
    assert num_to_keep(0, 0.5) == 0


def test_ties_at_the_threshold_are_all_kept() -> None:
    values = f32(3, -2, 2, 0, -0.0, 1)
    assert magnitude_threshold(lambda: [values], num_kept=2) == 2.0
    merged = ties(values, np.zeros(6), thresholds=(2.0, 0.0), weights=(1.0, 1.0))
    assert merged.tolist() == [3, -2, 2, 0, 0, 0]


def test_the_threshold_of_too_few_elements_is_the_least_or_zero() -> None:
    assert magnitude_threshold(lambda: [f32(3, -2)], num_kept=9) == 2.0
    assert magnitude_threshold(lambda: [f32(3, 0, 0)], num_kept=2) == 0.0
    assert magnitude_threshold(list, num_kept=1) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_threshold_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(CompatibilityError, match=r"model\.norm\.weight: NaN or Inf"):
        magnitude_threshold(lambda: [f32(1, bad)], num_kept=1, label="model.norm.weight")


def test_ties_element_by_element() -> None:
    delta = np.array([4.0, 4.0, 4.0, 4.0, 0.5, 0.0, 0.5])
    residual = np.array([2.0, -2.0, -8.0, 0.5, 0.5, 0.0, -4.0])
    merged = ties(delta, residual, thresholds=(1.0, 1.0), weights=(1.0, 0.5))
    assert merged.tolist() == [2.5, 4.0, 0.0, 4.0, 0.0, 0.0, -2.0]
    assert np.signbit(merged).tolist() == [False, False, True, False, True, True, True]


def test_a_vector_of_weight_zero_takes_no_part() -> None:
    delta, residual = np.array([4.0, -4.0]), np.array([9.0, 9.0])
    assert ties(delta, residual, thresholds=(0, 0), weights=(0.5, 0)).tolist() == [2.0, -2.0]


def test_trimming_compares_in_fp32_where_the_threshold_was_found() -> None:
    above_one = 1.0 + 2.0**-23  # the fp32 number after 1
    exact = np.array([above_one - 2.0**-30, 1.0 + 2.0**-30, 1e300])  # above_one, 1 and Inf in fp32
    merged = ties(exact, np.zeros(3), thresholds=(above_one, 0.0), weights=(1.0, 1.0))
    assert merged.tolist() == [exact[0], 0.0, 1e300]


# --- low rank
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_zero_matrix_has_rank_one(shape: tuple[int, int]) -> None:
    for options in ({"rank": 3}, {"explained_variance": 0.9}):
        factors = low_rank(np.zeros(shape, dtype=np.float32), **options)
        assert factors.rank == 1
        assert factors.left.shape == (shape[0], 1)
        assert factors.right.shape == (1, shape[1])
        assert not factors.left.any()
        assert not factors.right.any()


@pytest.mark.parametrize("turned", [False, True])
def test_low_rank_in_many_chunks_is_low_rank_in_one(
    monkeypatch: pytest.MonkeyPatch, turned: bool
) -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    matrix = matrix.T if turned else matrix
    one = low_rank(matrix, rank=5)
    monkeypatch.setattr("cpt_residual.methods.low_rank._CHUNK", 60)
    many = low_rank(matrix, rank=5)
    np.testing.assert_allclose(many.left, one.left, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(many.right, one.right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_low_rank_refuses_what_is_not_finite(bad: float) -> None:
    matrix = np.zeros((4, 3), dtype=np.float32)
    matrix[2, 1] = bad
    with pytest.raises(CompatibilityError, match="NaN or Inf"):
        low_rank(matrix, rank=1)


def test_low_rank_rows_of_nothing() -> None:
    assert low_rank_rows(np.ones((2, 1), np.float32), np.ones((1, 3), np.float32), 4, 4).size == 0


# --- strengths
@pytest.mark.parametrize(
    ("dot", "squared", "alpha"),
    [(0, 4, 1.0), (2, 4, 0.5), (-2, 4, 1.5), (8, 4, 0.0), (-8, 4, 2.0), (0, 0, 1.0)],
)
def test_projection_alpha(dot: float, squared: float, alpha: float) -> None:
    assert projection_alpha(dot, squared) == alpha


def test_projection_alpha_within_given_limits() -> None:
    assert projection_alpha(8, 4, low=0.25, high=1.0) == 0.25
    assert projection_alpha(-8, 4, low=0.25, high=1.0) == 1.0


@pytest.mark.parametrize(("dot", "squared"), [(np.nan, 1.0), (0.0, np.inf)])
def test_projection_alpha_refuses_what_is_not_finite(dot: float, squared: float) -> None:
    with pytest.raises(CompatibilityError, match="no alpha follows"):
        projection_alpha(dot, squared)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"mlp": 0.5}, [1, 1, 1, 0.5, 0.5, 1]),
        ({"layers.0": 0.5}, [1, 1, 0.5, 0.5, 1, 1]),
        ({"layers.1-10": 0.5}, [1, 1, 1, 1, 0.5, 1]),
        ({"layers.0-10": 0.5, "mlp": 0.25}, [1, 1, 0.5, 0.25, 0.25, 1]),
        ({"mlp": 0.25, "layers.0-10": 0.5}, [1, 1, 0.5, 0.5, 0.5, 1]),
        ({"*": 0.0, "*.q_proj.*": 2.0, "head": -1.0}, [-1, 0, 2, 0, 0, 0]),
        ({"model.norm.weight": 3.0}, [1, 1, 1, 1, 1, 3]),
    ],
)
def test_the_last_matching_scale_decides(scales: dict[str, float], expected: list[float]) -> None:
    require_known_scales(iter(NAMES), scales, ROWS)
    assert [scale_of(name, scales, ROWS) for name in NAMES] == expected


def test_every_wrong_scale_is_listed() -> None:
    scales = {
        "atention": 1.0,
        "mlp": float("inf"),
        "other": 1.0,
        "layers.11-20": 0.5,
        "layers.10-0": 0.5,
        "model.layers.*.q_porj.weight": 0.5,
        "model.weight.*": 0.5,
        "embeddings": 0.5,
    }
    with pytest.raises(ConfigError) as caught:
        require_known_scales(NAMES, scales, ROWS)
    assert caught.value.what == "7 scale(s) cannot be used"
    assert list(caught.value.problems) == [
        "scales.mlp: inf is not a finite number",
        "scales.atention: no tensor matches. Did you mean 'attention'?",
        "scales.other: no tensor matches. The model has: head, embeddings, mlp, attention, norm.",
        "scales.layers.11-20: no tensor matches. The layers are 0 to 10.",
        "scales.layers.10-0: no tensor matches. The layers are 0 to 10.",
        "scales.model.layers.*.q_porj.weight: no tensor matches. Did you mean 'q_proj'?",
        "scales.model.weight.*: no tensor matches.",
    ]
    assert "attention, mlp, embeddings, head, norm, other" in caught.value.remedy


def test_layers_of_a_model_without_layers() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0: no tensor matches\. No layers\."):
        require_known_scales(["lm_head.weight"], {"layers.0": 1.0}, ROWS)


def test_special_token_rows() -> None:
    assert special_token_rows([4, 1, 4], 5).tolist() == [False, True, False, False, True]
    assert not special_token_rows([], 3).any()
    with pytest.raises(CompatibilityError, match=r"2 special token\(s\) have no row") as caught:
        special_token_rows([5, 0, -1], 5)
    assert caught.value.problems == ("id -1", "id 5")
