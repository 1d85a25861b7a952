"""Which elements have a proof in fp32, and which are left to the loop in float64."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest

from cpt_residual.weights import arithmetic, kernel_vectors, native
from cpt_residual.weights.arithmetic import Raw
from cpt_residual.weights.kernel_vectors import CHUNK
from support.three_models import (
    INFINITE,
    LARGEST,
    MINUS_ZERO,
    NAN,
    SUBNORMAL,
    Three,
    like_sized,
    realistic,
)

_COUNTING_LOOP = """
define void @{name}({arrays}, double %f, i64 %size, ptr %s, ptr %counts) {{
  %place = getelementptr i64, ptr %counts, i64 48
  %before = load i64, ptr %place
  %after = add i64 %before, %size
  store i64 %after, ptr %place
  ret void
}}
"""


def num_by_loop(name: str, arrays: list[Raw], factor: float) -> int:
    """How many elements the kernel gives to the loop, which here only counts them."""
    dtypes = "".join(array.dtype.char for array in arrays)
    text = kernel_vectors.kernel_module(name, dtypes)
    assert text is not None
    given = ", ".join(f"ptr %a{number}" for number in range(len(dtypes)))
    module = llvm.parse_assembly(text)
    native._llvm()
    module.link_in(
        llvm.parse_assembly(_COUNTING_LOOP.format(name=kernel_vectors.LOOP, arrays=given))
    )
    kernel = native._linked(native._machine().emit_object(module))
    sums = np.zeros((native.NUM_SUMS, native.LANES))
    counts = np.zeros((native.NUM_COUNTS, native.LANES), dtype=np.int64)
    places = [array.ctypes.data for array in arrays]
    kernel(*places, factor, arrays[0].size, sums.ctypes.data, counts.ctypes.data)
    return int(counts[3, 0])


def left_over(three: Three, factor: float = 1.0) -> tuple[int, int]:
    """Elements that the two kernels give to the loop."""
    out = np.empty_like(three.target)
    pair = [three.target, three.base, three.instruct, out]
    stored = arithmetic.to_float32(three.instruct) - arithmetic.to_float32(three.base)
    return (
        num_by_loop("add_difference", pair, factor),
        num_by_loop("add", [three.target, stored, out, three.target], factor),
    )


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, 4.0])
def test_realistic_chunks_need_no_loop(factor: float) -> None:
    three = realistic(40 * CHUNK + 13, 0)
    close = (three.target & 0x7F80) > (110 << 7)  # elements near 0 may be 2^16 from others
    for raw in (three.target, three.base, three.instruct):
        raw[~close] = 0x3C00
    assert left_over(three, factor) == (13, 13)


@pytest.mark.parametrize("centre", range(30, 240, 15))
def test_elements_of_like_size_need_no_loop(centre: int) -> None:
    assert left_over(like_sized(4 * CHUNK, centre, 4, centre)) == (0, 0)


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-16, -(2.0**16)])
def test_the_largest_and_the_least_factor_need_no_loop(factor: float) -> None:
    three = Three(*(np.full(CHUNK, value, np.uint16) for value in (0x3F80, 0x3F00, 0x3F02)))
    assert left_over(three, factor) == (0, 0)


@pytest.mark.parametrize("factor", [0.75, 0.1, 2.0**17, 2.0**-17, 0.0, float("inf")])
def test_other_factors_are_left_to_the_loop(factor: float) -> None:
    assert left_over(realistic(3 * CHUNK, 0), factor) == (3 * CHUNK, 3 * CHUNK)


@pytest.mark.parametrize(
    ("which", "bits", "by_loop"),
    [
        ("target", MINUS_ZERO, (CHUNK, CHUNK)),
        ("target", NAN, (CHUNK, CHUNK)),
        ("target", INFINITE, (CHUNK, CHUNK)),
        ("target", LARGEST, (CHUNK, CHUNK)),
        ("instruct", SUBNORMAL, (CHUNK, 0)),  # fp32 does not hold the difference
        ("base", MINUS_ZERO, (0, 0)),
    ],
)
def test_one_odd_element_leaves_its_chunk_to_the_loop(
    which: str, bits: int, by_loop: tuple[int, int]
) -> None:
    three = Three(*(np.full(5 * CHUNK, value, np.uint16) for value in (0x3C00, 0x3C10, 0x3C20)))
    assert left_over(three) == (0, 0)
    getattr(three, which)[2 * CHUNK + 9] = bits
    with np.errstate(invalid="ignore"):
        assert left_over(three) == by_loop


def test_other_dtypes_have_the_loop_alone() -> None:
    assert kernel_vectors.kernel_module("add_difference", "ffff") is None
    assert kernel_vectors.kernel_module("subtract", "HHfH") is None
