"""What each kernel does to one element, compiled by numba; imported when a kernel is first run.

A body gets four flat arrays (those that it does not need repeat the first), a factor, the element's
place, and its sums and counts: float64 and int64, one row per number and one column per lane. Raw
bf16 is uint16 bits. Element i goes to lane i % LANES and lanes are added in order, so that a sum
depends neither on threads nor on the processor. Floats are neither reordered nor fused. Coverage
cannot see compiled code; property tests compare every kernel with plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from numba import types
from numba.extending import overload, register_jitable

LANES = 16
NUM_SUMS, NUM_COUNTS = 8, 4
MAX_FINITE = float(np.finfo(np.float32).max)

_numba = cast("Any", numba)
_jit = cast("Callable[[Callable[..., Any]], Callable[..., Any]]", register_jitable)
_overload = cast("Callable[..., Callable[..., Any]]", overload)


# --- one number ----------------------------------------------------------------------------------
def widen(value: Any) -> Any:  # pragma: no cover
    """One raw element as float64."""
    raise NotImplementedError


def narrow(out: Any, at: Any, value: Any) -> Any:  # pragma: no cover
    """out[at] = value rounded once to out's dtype."""
    raise NotImplementedError


def to_bf16(value: Any) -> Any:  # pragma: no cover
    """One raw element rounded to bf16 and widened again."""
    raise NotImplementedError


@_overload(widen)
def _widen(value: Any) -> Any:  # pragma: no cover
    if value == cast("Any", types).uint16:

        def from_bf16(value: Any) -> Any:
            return np.float64(np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32))

        return from_bf16

    def from_float(value: Any) -> Any:
        return np.float64(value)

    return from_float


@_overload(narrow)
def _narrow(out: Any, at: Any, value: Any) -> Any:  # pragma: no cover
    if out.dtype == cast("Any", types).uint16:

        def to_bits(out: Any, at: Any, value: Any) -> Any:
            nearest = np.float32(value)
            bits = nearest.view(np.uint32)
            back = np.float64(nearest)
            # To odd first (Boldo and Melquiond 2008): no tie arises that `value` does not have.
            inexact = np.uint32(back != value) & (~bits & np.uint32(1))
            outwards = np.uint32(abs(value) > abs(back))
            odd = np.uint32(bits + inexact * (np.uint32(2) * outwards - np.uint32(1)))
            even = np.uint32(odd + np.uint32(0x7FFF) + ((odd >> np.uint32(16)) & np.uint32(1)))
            # NaN's bits could carry into the sign; it stays NaN, to be found and refused.
            out[at] = np.uint16(even >> np.uint32(16)) if value == value else np.uint16(0x7FC0)  # noqa: PLR0124

        return to_bits

    def to_float32(out: Any, at: Any, value: Any) -> Any:
        out[at] = np.float32(value)

    return to_float32


@_overload(to_bf16)
def _to_bf16(value: Any) -> Any:  # pragma: no cover
    if value == cast("Any", types).uint16:

        def from_bf16(value: Any) -> Any:
            return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

        return from_bf16

    def from_float32(value: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        even = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        return np.uint32(even & np.uint32(0xFFFF0000)).view(np.float32)

    return from_float32


@_jit
def _minus(left: float, right: float) -> float:  # pragma: no cover
    """left - right; of two zeros, left: the sign of -0.0 - -0.0 survives an addition."""
    return left if (left == 0.0) & (right == 0.0) else left - right


# --- residual and merge --------------------------------------------------------------------------
@_jit
def subtract(
    base: Any, instruct: Any, out: Any, _: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """out = instruct - base in fp32. Sums: base^2, instruct^2, out^2, base * difference. Count:
    elements that fp32 may not hold, or whose zero is -0.0."""
    lane = at % LANES
    left, right = widen(instruct[at]), widen(base[at])
    difference = _minus(left, right)
    stored = np.float32(difference)
    out[at] = stored
    sums[0, lane] += right * right
    sums[1, lane] += left * left
    sums[2, lane] += np.float64(stored) * np.float64(stored)  # Inf where fp32 is too small
    sums[3, lane] += right * difference
    counts[0, lane] += np.int64(
        (np.float64(stored) != difference)
        | (right + difference != left)
        | (left - difference != right)
        | ((left == 0.0) & (np.copysign(1.0, left) < 0.0))
    )


@_jit
def _merge(
    target: Any, exact: float, move: float, out: Any, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """out[at] = exact, rounded once. Sums: target^2, move^2, target * move. Counts: elements that
    were to move, those that rounding left in place, those that are not finite."""
    lane = at % LANES
    start = widen(target[at])
    narrow(out, at, exact)
    merged = widen(out[at])
    sums[0, lane] += start * start
    sums[1, lane] += move * move
    sums[2, lane] += start * move
    moved = np.int64(move != 0.0)
    counts[0, lane] += moved
    counts[1, lane] += moved & np.int64(merged == start)
    counts[2, lane] += np.int64(~(abs(merged) <= MAX_FINITE))


@_jit
def add(
    target: Any, delta: Any, out: Any, _: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """out = target + factor * delta (see _merge)."""
    move = factor * np.float64(delta[at])
    _merge(target, widen(target[at]) + move, move, out, at, sums, counts)


@_jit
def add_difference(
    target: Any, base: Any, instruct: Any, out: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """out = target + factor * (instruct - base) (see _merge). Fourth count: differences that
    float64 did not hold."""
    left, right = widen(instruct[at]), widen(base[at])
    difference = _minus(left, right)
    move = factor * difference
    _merge(target, widen(target[at]) + move, move, out, at, sums, counts)
    inexact = (right + difference != left) | (left - difference != right)
    counts[3, at % LANES] += np.int64(inexact)


@_jit
def place(
    target: Any, exact: Any, move: Any, out: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """out = exact (see _merge)."""
    _merge(target, exact[at], move[at], out, at, sums, counts)


@_jit
def dot(
    left: Any, right: Any, _: Any, __: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """Sum: left * right."""
    sums[0, at % LANES] += left[at] * right[at]


# --- geometry ------------------------------------------------------------------------------------
@_jit
def _three(
    base: Any, instruct: Any, base_cpt: Any, at: int, sums: Any, counts: Any
) -> Any:  # pragma: no cover
    lane = at % LANES
    start, end, target = widen(base[at]), widen(base_cpt[at]), widen(instruct[at])
    delta, residual = end - start, target - start
    sums[0, lane] += start * start
    sums[1, lane] += target * target
    sums[2, lane] += delta * delta
    sums[3, lane] += residual * residual
    sums[4, lane] += delta * residual
    both = np.int64((delta != 0.0) & (residual != 0.0))
    changed = np.int64(delta != 0.0)
    counts[0, lane] += both
    counts[1, lane] += both & np.int64((delta < 0.0) != (residual < 0.0))
    counts[2, lane] += changed
    counts[3, lane] += changed & np.int64(to_bf16(base[at]) == to_bf16(base_cpt[at]))
    return delta, residual


@_jit
def family_of_three(
    base: Any, instruct: Any, base_cpt: Any, _: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """Sums and counts of geometry_kernels.FamilySums, from base_squared and num_both on."""
    _three(base, instruct, base_cpt, at, sums, counts)


@_jit
def family_of_four(
    base: Any,
    instruct: Any,
    base_cpt: Any,
    instruct_cpt: Any,
    factor: float,
    at: int,
    sums: Any,
    counts: Any,
) -> None:  # pragma: no cover
    """As family_of_three, with the last three sums."""
    delta, residual = _three(base, instruct, base_cpt, at, sums, counts)
    lane = at % LANES
    instruct_delta = widen(instruct_cpt[at]) - widen(instruct[at])
    sums[5, lane] += instruct_delta * instruct_delta
    sums[6, lane] += delta * instruct_delta
    sums[7, lane] += instruct_delta * residual


@_jit
def pair(
    left: Any, right: Any, _: Any, __: Any, factor: float, at: int, sums: Any, counts: Any
) -> None:  # pragma: no cover
    """Sums of geometry_kernels.PairSums; count: equal elements."""
    lane = at % LANES
    one, other = widen(left[at]), widen(right[at])
    distance = other - one
    sums[0, lane] += one * one
    sums[1, lane] += other * other
    sums[2, lane] += distance * distance
    sums[3, lane] += one * other
    counts[0, lane] += np.int64(one == other)


# --- all elements --------------------------------------------------------------------------------
def over_all(body: Callable[..., Any]) -> Callable[..., None]:
    """`body` for every element of four arrays, compiled for the dtypes of the first call. Releases
    the interpreter lock; kept on disk where numba's CACHE_DIR names a folder."""

    def run(
        first: Any, second: Any, third: Any, fourth: Any, factor: float, sums: Any, counts: Any
    ) -> None:  # pragma: no cover
        whole = first.size // LANES * LANES
        for start in range(0, whole, LANES):  # the inner loop's length is fixed: it is unrolled
            for lane in range(LANES):
                body(first, second, third, fourth, factor, start + lane, sums, counts)
        for at in range(whole, first.size):
            body(first, second, third, fourth, factor, at, sums, counts)

    is_kept = bool(_numba.config.CACHE_DIR)
    return cast("Callable[..., None]", _numba.njit(run, nogil=True, cache=is_kept))
