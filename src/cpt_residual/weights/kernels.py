"""The arithmetic of residuals in one pass over memory: compiled, with the bits of `arithmetic`.

Blocks are flat: bf16 as uint16 bits, fp32 as float32 (fp16 is widened by the caller). Every
element is the float64 value of its formula, rounded once, to nearest even. Sums are float64 in
LANES fixed lanes, so they depend neither on threads nor on the processor. Coverage cannot see
compiled code; property tests compare every kernel with `arithmetic`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from cpt_residual.weights.arithmetic import Raw
from cpt_residual.weights.jit import jit

LANES = 16
MAX_FINITE = float(np.finfo(np.float32).max)


class MergeSums(NamedTuple):
    """Sums over elements; `move` is what was added to the target, before rounding.

    num_moved: elements with move != 0; num_lost: those that rounding left at the target's value;
    num_not_finite: merged elements that are NaN or Inf.
    """

    target_squared: float = 0.0
    move_squared: float = 0.0
    target_dot_move: float = 0.0
    num_moved: int = 0
    num_lost: int = 0
    num_not_finite: int = 0

    def plus(self, other: MergeSums) -> MergeSums:
        return MergeSums(
            self.target_squared + other.target_squared,
            self.move_squared + other.move_squared,
            self.target_dot_move + other.target_dot_move,
            self.num_moved + other.num_moved,
            self.num_lost + other.num_lost,
            self.num_not_finite + other.num_not_finite,
        )


class SubtractSums(NamedTuple):
    """Sums over elements; num_suspect: elements that fp32 may not hold, or whose zero is -0.0."""

    base_squared: float
    instruct_squared: float
    residual_squared: float
    base_dot_residual: float
    num_suspect: int


def subtract(base: Raw, instruct: Raw, out: npt.NDArray[np.float32]) -> SubtractSums:
    """out = instruct - base in fp32."""
    return SubtractSums(*_subtract(base, instruct, out))


def add(target: Raw, delta: npt.NDArray[np.float32], alpha: float, out: Raw) -> MergeSums:
    """out = target + alpha * delta, in target's dtype."""
    return MergeSums(*_add(target, delta, alpha, out))


def add_difference(
    target: Raw, base: Raw, instruct: Raw, alpha: float, out: Raw
) -> tuple[MergeSums, int]:
    """out = target + alpha * (instruct - base), in target's dtype; and how many differences float64
    did not hold: with any, `out` is not to be used (see arithmetic.merged_exactly)."""
    *sums, num_inexact = _add_difference(target, base, instruct, alpha, out)
    return MergeSums(*sums), num_inexact


def place(
    target: Raw, exact: npt.NDArray[np.float64], move: npt.NDArray[np.float64], out: Raw
) -> MergeSums:
    """out = exact, rounded to target's dtype; `move` is what made it of target (see MergeSums)."""
    return MergeSums(*_place(target, exact, move, out))


def dot(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Inner product of two float64 blocks."""
    return float(_dot(left, right))


# --- what follows is compiled ------------------------------------------------------------------
def widen(value: Any) -> Any:  # pragma: no cover
    """One raw element as float64, for use inside compiled code."""
    raise NotImplementedError


def narrow(out: Any, at: Any, value: Any) -> Any:  # pragma: no cover
    """out[at] = value rounded once to out's dtype, for use inside compiled code."""
    raise NotImplementedError


_inline = cast("Callable[..., Callable[..., Any]]", overload)


@_inline(widen)
def _widen(value: Any) -> Any:  # pragma: no cover
    if value == cast("Any", types).uint16:

        def from_bf16(value: Any) -> Any:
            return np.float64(np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32))

        return from_bf16

    def from_float(value: Any) -> Any:
        return np.float64(value)

    return from_float


@_inline(narrow)
def _narrow(out: Any, at: Any, value: Any) -> Any:  # pragma: no cover
    if out.dtype == cast("Any", types).uint16:

        def to_bf16(out: Any, at: Any, value: Any) -> Any:
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

        return to_bf16

    def to_float32(out: Any, at: Any, value: Any) -> Any:
        out[at] = np.float32(value)

    return to_float32


@jit
def minus(left: float, right: float) -> float:  # pragma: no cover
    """left - right; of two zeros, left: the sign of -0.0 - -0.0 survives an addition."""
    return left if (left == 0.0) & (right == 0.0) else left - right


@jit
def _subtract_one(
    base: Any, instruct: Any, out: Any, at: int, lanes: Any
) -> int:  # pragma: no cover
    left, right = widen(instruct[at]), widen(base[at])
    difference = minus(left, right)
    stored = np.float32(difference)
    out[at] = stored
    lane = at % LANES
    lanes[0, lane] += right * right
    lanes[1, lane] += left * left
    lanes[2, lane] += np.float64(stored) * np.float64(stored)  # Inf where fp32 is too small
    lanes[3, lane] += right * difference
    return int(
        (np.float64(stored) != difference)
        | (right + difference != left)
        | (left - difference != right)
        | ((left == 0.0) & (np.copysign(1.0, left) < 0.0))
    )


@jit
def _subtract(base: Any, instruct: Any, out: Any) -> Any:  # pragma: no cover
    lanes = np.zeros((4, LANES))
    num_suspect = 0
    whole = base.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            num_suspect += _subtract_one(base, instruct, out, start + lane, lanes)
    for at in range(whole, base.size):
        num_suspect += _subtract_one(base, instruct, out, at, lanes)
    sums = lanes.sum(axis=1)
    return sums[0], sums[1], sums[2], sums[3], num_suspect


@jit
def _merge_one(
    target: Any, exact: float, move: float, out: Any, at: int, lanes: Any, counts: Any
) -> None:  # pragma: no cover
    start = widen(target[at])
    narrow(out, at, exact)
    merged = widen(out[at])
    lane = at % LANES
    lanes[0, lane] += start * start
    lanes[1, lane] += move * move
    lanes[2, lane] += start * move
    moved = np.int64(move != 0.0)
    counts[0, lane] += moved
    counts[1, lane] += moved & np.int64(merged == start)
    counts[2, lane] += np.int64(~(abs(merged) <= MAX_FINITE))


@jit
def _add(target: Any, delta: Any, alpha: float, out: Any) -> Any:  # pragma: no cover
    lanes, counts = np.zeros((3, LANES)), np.zeros((3, LANES), dtype=np.int64)
    whole = target.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            at = start + lane
            move = alpha * np.float64(delta[at])
            _merge_one(target, widen(target[at]) + move, move, out, at, lanes, counts)
    for at in range(whole, target.size):
        move = alpha * np.float64(delta[at])
        _merge_one(target, widen(target[at]) + move, move, out, at, lanes, counts)
    return _totals(lanes, counts)


@jit
def _add_difference_one(
    target: Any, base: Any, instruct: Any, alpha: float, out: Any, at: int, lanes: Any, counts: Any
) -> int:  # pragma: no cover
    left, right = widen(instruct[at]), widen(base[at])
    difference = minus(left, right)
    move = alpha * difference
    _merge_one(target, widen(target[at]) + move, move, out, at, lanes, counts)
    return int((right + difference != left) | (left - difference != right))


@jit
def _add_difference(
    target: Any, base: Any, instruct: Any, alpha: float, out: Any
) -> Any:  # pragma: no cover
    lanes, counts = np.zeros((3, LANES)), np.zeros((3, LANES), dtype=np.int64)
    num_inexact = 0
    whole = target.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            at = start + lane
            num_inexact += _add_difference_one(
                target, base, instruct, alpha, out, at, lanes, counts
            )
    for at in range(whole, target.size):
        num_inexact += _add_difference_one(target, base, instruct, alpha, out, at, lanes, counts)
    sums, numbers = lanes.sum(axis=1), counts.sum(axis=1)
    return sums[0], sums[1], sums[2], numbers[0], numbers[1], numbers[2], num_inexact


@jit
def _place(target: Any, exact: Any, move: Any, out: Any) -> Any:  # pragma: no cover
    lanes, counts = np.zeros((3, LANES)), np.zeros((3, LANES), dtype=np.int64)
    whole = target.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            at = start + lane
            _merge_one(target, exact[at], move[at], out, at, lanes, counts)
    for at in range(whole, target.size):
        _merge_one(target, exact[at], move[at], out, at, lanes, counts)
    return _totals(lanes, counts)


@jit
def _totals(lanes: Any, counts: Any) -> Any:  # pragma: no cover
    sums, numbers = lanes.sum(axis=1), counts.sum(axis=1)
    return sums[0], sums[1], sums[2], numbers[0], numbers[1], numbers[2]


@jit
def _dot(left: Any, right: Any) -> Any:  # pragma: no cover
    lanes = np.zeros(LANES)
    whole = left.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += left[start + lane] * right[start + lane]
    for at in range(whole, left.size):
        lanes[at % LANES] += left[at] * right[at]
    return lanes.sum()
