"""What must hold for the methods beyond plain addition, for any values and any cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cpt_residual.methods.dare import dare_factors
from cpt_residual.methods.low_rank import LowRankFactors, low_rank, low_rank_rows
from cpt_residual.methods.ties import magnitude_threshold, num_to_keep, ties
from cpt_residual.weights.maths.strengths import projection_alpha

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)
names = st.text(max_size=20)
rates = st.floats(0.0, 0.999)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
common = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-126), 3.4028234663852886e38])
vectors = arrays.arrays(np.float32, st.integers(1, 60), elements=finite | common)
small = st.floats(-8, 8, width=16)
pairs = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[arrays.arrays(np.float64, n, elements=small) for _ in range(2)])
)
strengths = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, -1.0])
thresholds = st.sampled_from([0.0, 2.0**-14, 0.5, 1.0, 3.0])
calm = settings(deadline=None, max_examples=60)


def cut(values: npt.NDArray[np.generic], cuts: Iterable[int]) -> list[npt.NDArray[np.generic]]:
    edges = [0, *sorted(min(at, len(values)) for at in cuts), len(values)]
    return [values[start:stop] for start, stop in pairwise(edges)]


def as_blocks(values: F32, cuts: Iterable[int] = ()) -> Callable[[], Iterable[F32]]:
    blocks = cut(values, cuts)
    return lambda: iter(blocks)


@given(names, seeds, rates, st.integers(0, 2**40), st.lists(st.integers(0, 300), max_size=6))
@calm
def test_dare_does_not_depend_on_the_cut(
    name: str, seed: int, rate: float, start: int, cuts: list[int]
) -> None:
    whole = dare_factors(name, start, 300, drop_rate=rate, seed=seed)
    edges = [0, *sorted(cuts), 300]
    parts = [
        dare_factors(name, start + first, last - first, drop_rate=rate, seed=seed)
        for first, last in pairwise(edges)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert set(whole.tolist()) <= {0.0, 1.0 / (1.0 - rate)}


@given(seeds, st.sampled_from([0.1, 0.5, 0.9, 0.99]))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_dare_drops_its_share(seed: int, rate: float) -> None:
    num = 200_000
    factors = dare_factors("w", 0, num, drop_rate=rate, seed=seed)
    deviation = math.sqrt(rate * (1 - rate) / num)
    assert abs(np.mean(factors == 0.0) - rate) < 5 * deviation
    assert abs(factors.mean() - 1.0) < 5 * deviation / (1 - rate)


@given(seeds, names, names)
@calm
def test_dare_differs_between_tensors_and_between_seeds(seed: int, left: str, right: str) -> None:
    def mask(name: str, number: int) -> bytes:
        return dare_factors(name, 0, 200, drop_rate=0.5, seed=number).tobytes()

    assert mask(left, seed) != mask(left, seed + 1)
    assert left == right or mask(left, seed) != mask(right, seed)


@given(vectors, st.data(), st.lists(st.integers(0, 60), max_size=5))
@settings(deadline=None, max_examples=200)
def test_the_threshold_is_the_kth_largest_magnitude(
    values: F32, data: st.DataObject, cuts: list[int]
) -> None:
    kept = data.draw(st.integers(1, len(values) + 3))
    magnitudes = np.sort(np.abs(values))[::-1]
    found = magnitude_threshold(as_blocks(values, cuts), num_kept=kept)
    assert found == magnitudes[min(kept, len(values)) - 1]
    assert np.count_nonzero(magnitudes >= np.float32(found)) >= min(kept, len(values))
    assert np.count_nonzero(magnitudes > np.float32(found)) < kept


@given(seeds, st.floats(0.0, 1.0, exclude_min=True), st.integers(1, 100))
@settings(deadline=None, max_examples=15)
def test_the_threshold_of_many_elements(seed: int, density: float, step: int) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**32, 20_000, dtype=np.uint32)  # every exponent alike
    values = np.nan_to_num(bits.view(np.float32), nan=1.0, posinf=1.0, neginf=-1.0)
    kept = num_to_keep(values.size, density)
    expected = np.partition(np.abs(values), values.size - kept)[values.size - kept]
    cuts = range(step, values.size, step * 97)
    assert magnitude_threshold(as_blocks(values, cuts), num_kept=kept) == expected


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_at_least_the_density_is_kept(num_elements: int, permille: int) -> None:
    kept = num_to_keep(num_elements, permille / 1000)
    share = Fraction(permille, 1000) * num_elements
    assert share <= kept < share + 1
    assert 1 <= kept <= num_elements


def reference_ties(
    pair: tuple[F64, F64], limits: tuple[float, float], weights: tuple[float, float]
) -> list[float]:
    """The definition, one element at a time."""
    merged: list[float] = []
    for elements in zip(*pair, strict=True):
        votes = [
            weight * value
            for value, limit, weight in zip(elements, limits, weights, strict=True)
            if abs(value) >= limit
        ]
        total = sum(votes)
        agreeing = [vote for vote in votes if vote * total > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(pairs, st.tuples(thresholds, thresholds), st.tuples(strengths, strengths))
@settings(deadline=None, max_examples=200)
def test_ties_is_its_definition(
    pair: tuple[F64, F64], limits: tuple[float, float], weights: tuple[float, float]
) -> None:
    merged = ties(*pair, thresholds=limits, weights=weights)
    assert merged.dtype == np.float64
    np.testing.assert_array_equal(merged, reference_ties(pair, limits, weights))


@given(pairs, st.tuples(thresholds, thresholds), st.tuples(strengths, strengths))
@calm
def test_ties_is_symmetric(
    pair: tuple[F64, F64], limits: tuple[float, float], weights: tuple[float, float]
) -> None:
    merged = ties(*pair, thresholds=limits, weights=weights)
    negated = ties(-pair[0], -pair[1], thresholds=limits, weights=weights)
    np.testing.assert_array_equal(negated, -merged)
    opposed = ties(*pair, thresholds=limits, weights=(-weights[0], -weights[1]))
    np.testing.assert_array_equal(opposed, -merged)
    swapped = ties(*pair[::-1], thresholds=limits[::-1], weights=weights[::-1])
    np.testing.assert_array_equal(swapped, merged)


@given(pairs, st.lists(st.integers(0, 40), max_size=4))
@calm
def test_ties_does_not_depend_on_the_cut_nor_on_fp32_input(
    pair: tuple[F64, F64], cuts: list[int]
) -> None:
    options = {"thresholds": (0.5, 0.25), "weights": (0.75, 1.0)}
    whole = ties(*pair, **options)
    left, right = (cut(side, cuts) for side in pair)
    parts = [ties(*blocks, **options) for blocks in zip(left, right, strict=True)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    narrow = ties(pair[0].astype(np.float32), pair[1].astype(np.float32), **options)
    assert narrow.tobytes() == whole.tobytes()


@given(pairs)
@calm
def test_two_agreeing_vectors_at_density_one_are_averaged(pair: tuple[F64, F64]) -> None:
    left, right = np.abs(pair[0]) + 1, np.abs(pair[1]) + 1
    limits = tuple(
        magnitude_threshold(as_blocks(side.astype(np.float32)), num_kept=side.size)
        for side in (left, right)
    )
    once = ties(left, right, thresholds=limits, weights=(1.0, 1.0))
    np.testing.assert_array_equal(once, (left + right) / 2)
    twice = ties(left, right, thresholds=limits, weights=(2.0, 2.0))
    np.testing.assert_array_equal(twice, left + right)


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))


def gaussian(shape: tuple[int, int], seed: int) -> F32:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.uniform(-6, 3)
    spread = 0.7 ** np.arange(shape[1])  # directions of different size
    return (generator.standard_normal(shape) * spread * scale).astype(np.float32)


def relative_error(matrix: F32, factors: LowRankFactors) -> float:
    rest = matrix - factors.left.astype(np.float64) @ factors.right
    return float(np.linalg.norm(rest) / (np.linalg.norm(matrix.astype(np.float64)) or 1.0))


@given(shapes, seeds, st.integers(1, 30))
@calm
def test_low_rank_is_as_good_as_the_singular_values_allow(
    shape: tuple[int, int], seed: int, rank: int
) -> None:
    matrix = gaussian(shape, seed)
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    factors = low_rank(matrix, rank=rank)
    used = min(rank, *shape)
    assert factors.left.shape == (shape[0], used)
    assert factors.right.shape == (used, shape[1])
    assert factors.rank == used
    assert factors.left.dtype == factors.right.dtype == np.float32
    least = math.sqrt(squares[used:].sum() / squares.sum())
    assert abs(relative_error(matrix, factors) - least) < 1e-6


@given(shapes, seeds, st.floats(0.01, 1.0))
@calm
def test_explained_variance_gives_the_least_rank(
    shape: tuple[int, int], seed: int, wanted: float
) -> None:
    matrix = gaussian(shape, seed)
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = np.cumsum(squares) / squares.sum()
    assume(np.abs(shares - wanted).min() > 1e-9)
    factors = low_rank(matrix, explained_variance=wanted)
    assert 1.0 - relative_error(matrix, factors) ** 2 >= wanted - 1e-6
    assert factors.rank == int(np.argmax(shares > wanted)) + 1


@given(shapes, seeds, st.integers(1, 8))
@calm
def test_a_matrix_of_low_rank_is_kept(shape: tuple[int, int], seed: int, rank: int) -> None:
    generator = np.random.default_rng(seed)
    left = generator.integers(-8, 9, (shape[0], rank))
    matrix = (left @ generator.integers(-8, 9, (rank, shape[1]))).astype(np.float32)
    for factors in (low_rank(matrix, rank=rank), low_rank(matrix, explained_variance=1.0)):
        assert relative_error(matrix, factors) < 1e-6
        assert factors.rank <= min(rank, *shape)


@given(shapes, seeds, st.integers(1, 6))
@calm
def test_equal_matrices_give_equal_factors_with_fixed_signs(
    shape: tuple[int, int], seed: int, rank: int
) -> None:
    matrix = gaussian(shape, seed)
    first, again = low_rank(matrix, rank=rank), low_rank(matrix.copy(), rank=rank)
    assert first.left.tobytes() == again.left.tobytes()
    assert first.right.tobytes() == again.right.tobytes()
    short = first.right.T if shape[0] >= shape[1] else first.left
    assert (short[np.abs(short).argmax(axis=0), range(first.rank)] > 0).all()


@given(
    st.tuples(st.integers(1, 40), st.sampled_from([1, 3, 64, 5000, 70_001])),
    st.integers(1, 5),
    seeds,
    st.lists(st.floats(0, 1), max_size=6),
)
@settings(deadline=None, max_examples=40)
def test_low_rank_rows_do_not_depend_on_the_cut(
    shape: tuple[int, int], rank: int, seed: int, cuts: list[float]
) -> None:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((shape[0], rank)).astype(np.float32)
    right = generator.standard_normal((rank, shape[1])).astype(np.float32)
    num = shape[0] * shape[1]
    whole = low_rank_rows(left, right, 0, num)
    edges = [0, *sorted(int(share * num) for share in cuts), num]
    parts = [low_rank_rows(left, right, start, stop) for start, stop in pairwise(edges)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    product = left.astype(np.float64) @ right.astype(np.float64)
    np.testing.assert_allclose(whole, product.ravel(), rtol=1e-12, atol=1e-12)


@given(
    arrays.arrays(np.float64, 16, elements=st.floats(-1, 1)),
    arrays.arrays(np.float64, 16, elements=st.floats(-1, 1)),
)
@calm
def test_projection_alpha_brings_the_model_as_far_as_instruct(delta: F64, residual: F64) -> None:
    squared = float(residual @ residual)
    assume(squared > 1e-6)
    alpha = projection_alpha(float(delta @ residual), squared, low=-math.inf, high=math.inf)
    assert math.isclose((delta + alpha * residual) @ residual, squared, rel_tol=1e-9, abs_tol=1e-9)
    assert projection_alpha(float(delta @ residual), squared) == min(max(alpha, 0.0), 2.0)
