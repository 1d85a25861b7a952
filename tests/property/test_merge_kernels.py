"""The merge kernels have the bits, sums and counts of plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.weights.maths import arithmetic, kernel_bodies, kernels
from cpt_residual.weights.maths.arithmetic import Raw
from cpt_residual.weights.maths.kernels import MergeSums
from support.three_models import (
    INFINITE,
    LARGEST,
    MINUS_ZERO,
    NAN,
    SUBNORMAL,
    Three,
    any_bits,
    bf16,
    like_sized,
    realistic,
)

Exact = npt.NDArray[np.float64]

CHUNK = 512

ODD = (0, MINUS_ZERO, SUBNORMAL, 0x8001, 0x0080, LARGEST, 0xFF7F, 0x2000, 0x5F80)
"""bf16: zeros, subnormals, the least normal and the largest numbers, 2^-63 and 2^64."""
FACTORS = (1.0, 0.5, -2.0, 2.0**-16, -(2.0**16), 2.0**17, 2.0**-17, 0.75, 0.7, 0.0, 3e-200)

lengths = st.integers(0, 3 * CHUNK + 40) | st.sampled_from([CHUNK, 2 * CHUNK])
seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from(FACTORS) | st.floats(-4, 4, allow_subnormal=False)
odd_elements = st.lists(
    st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, 2), st.sampled_from(ODD)), max_size=6
)


def in_lanes(products: Exact) -> float:
    """Their sum, as every kernel takes it."""
    lanes = np.zeros(kernel_bodies.LANES)
    for start in range(0, products.size, kernel_bodies.LANES):
        part = products[start : start + kernel_bodies.LANES]
        lanes[: part.size] += part
    total = 0.0
    for lane in lanes.tolist():
        total += lane
    return total


def assert_merged(out: Raw, sums: MergeSums, target: Raw, move: Exact) -> None:
    start = arithmetic.to_float64(target)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = bf16(start + move)
        merged = arithmetic.to_float64(expected)
        assert np.array_equal(out, expected)
        squares = in_lanes(start * start), in_lanes(move * move), in_lanes(start * move)
    moved = move != 0
    counts = moved.sum(), (moved & (merged == start)).sum(), (~np.isfinite(merged)).sum()
    assert np.array_equal(np.array(sums), np.array([*squares, *counts]), equal_nan=True)


def assert_both_right(three: Three, factor: float) -> None:
    base, instruct = (arithmetic.to_float64(raw) for raw in (three.base, three.instruct))
    with np.errstate(invalid="ignore"):
        difference = instruct - base
        difference[(instruct == 0) & (base == 0)] = instruct[(instruct == 0) & (base == 0)]
        exact = (base + difference == instruct) & (instruct - difference == base)
    out = np.empty_like(three.target)
    sums, num_inexact = kernels.add_difference(
        three.target, three.base, three.instruct, factor, out
    )
    assert num_inexact == int(np.count_nonzero(~exact))
    assert_merged(out, sums, three.target, factor * difference)
    with np.errstate(over="ignore"):
        stored = difference.astype(np.float32)
    sums = kernels.add(three.target, stored, factor, out)
    assert_merged(out, sums, three.target, factor * stored.astype(np.float64))


@given(num=lengths, seed=seeds, factor=factors, odd=odd_elements)
def test_models_with_a_few_odd_elements(
    num: int, seed: int, factor: float, odd: list[tuple[int, int, int]]
) -> None:
    three = realistic(num, seed)
    for at, which, bits in odd:
        if num:
            (three.target, three.base, three.instruct)[which][at % num] = bits
    assert_both_right(three, factor)


@given(num=lengths, seed=seeds, factor=factors)
def test_elements_of_any_size(num: int, seed: int, factor: float) -> None:
    assert_both_right(any_bits(num, seed), factor)


@given(centre=st.integers(0, 254), width=st.integers(0, 12), seed=seeds, factor=factors)
def test_elements_of_like_size_at_any_scale(
    centre: int, width: int, seed: int, factor: float
) -> None:
    """These are proven, but where fp32 ends."""
    assert_both_right(like_sized(2 * CHUNK, centre, width, seed), factor)


@given(
    exponent=st.integers(0, 40),
    fraction=st.sampled_from([0, 1, 0x7FFFFE, 0x7FFFFF]) | st.integers(0, 0x7FFFFF),
    doublings=st.integers(-17, 17),
    target=st.integers(0, 0x1FFF),
    seed=seeds,
)
def test_residuals_where_fp32_ends(
    exponent: int, fraction: int, doublings: int, target: int, seed: int
) -> None:
    signs = np.random.default_rng(seed).integers(0, 2, (2, CHUNK), dtype=np.uint32)
    delta = (signs[0] << 31 | np.uint32(exponent << 23 | fraction)).view(np.float32)
    raw = (signs[1] << 15 | np.uint32(target)).astype(np.uint16)
    factor, out = 2.0**doublings, np.empty_like(raw)
    assert_merged(out, kernels.add(raw, delta, factor, out), raw, factor * delta.astype(np.float64))


@pytest.mark.parametrize("doublings", range(1, 17))
def test_a_product_that_rounds_up_to_a_normal_number_is_seen(doublings: int) -> None:
    delta = np.full(CHUNK, doublings << 23 | 0x7FFFFF, dtype=np.uint32).view(np.float32)
    raw, factor = np.full(CHUNK, 0x0481, dtype=np.uint16), 2.0**-doublings
    out = np.empty_like(raw)
    sums = kernels.add(raw, delta, factor, out)
    assert sums.num_lost == CHUNK
    assert_merged(out, sums, raw, factor * delta.astype(np.float64))


def test_what_is_read_is_not_overwritten() -> None:
    three = realistic(CHUNK, 0)
    stored = np.zeros(CHUNK, np.float32)
    with pytest.raises(ValueError, match="overwrite"):
        kernels.add(three.target, stored, 1.0, three.target)
    with pytest.raises(ValueError, match="overwrite"):
        kernels.add_difference(three.target, three.base, three.instruct, 1.0, three.instruct[:])


@pytest.mark.parametrize("bits", [INFINITE, NAN])
@pytest.mark.parametrize("which", ["target", "base", "instruct"])
def test_what_is_not_finite_is_counted(bits: int, which: str) -> None:
    three = realistic(2 * CHUNK, 0)
    getattr(three, which)[[5, CHUNK + 7]] = bits
    out = np.empty_like(three.target)
    sums, _ = kernels.add_difference(three.target, three.base, three.instruct, 1.0, out)
    assert sums.num_not_finite == 2
    assert not np.isfinite(arithmetic.to_float64(out[[5, CHUNK + 7]])).any()


def test_a_result_that_bf16_cannot_hold_is_counted() -> None:
    """fp32 holds the sum; rounded to bf16 it is Inf."""
    target = np.full(CHUNK, LARGEST, dtype=np.uint16)
    delta = np.full(CHUNK, 2.0**119, dtype=np.float32)  # half an ulp of the largest
    out = np.empty_like(target)
    assert kernels.add(target, delta, 1.0, out).num_not_finite == CHUNK
    assert kernels.add(target, delta / 2, 1.0, out).num_not_finite == 0
