"""The sums behind geometry and ancestry, in one pass over memory: compiled.

Blocks are flat: bf16 as uint16 bits, or fp32 (fp16 is widened by the caller); the models of one
call may differ in dtype. Differences, products and sums are float64. Element i of a block goes to
lane i % LANES and lanes are added in order, so a sum depends neither on threads nor on the
processor. Coverage cannot see compiled code; tests compare with plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from numba import types
from numba.extending import overload

from cpt_residual.weights.arithmetic import Raw
from cpt_residual.weights.jit import jit
from cpt_residual.weights.kernels import LANES, widen

NUM_SUMS, NUM_COUNTS = 8, 4


class FamilySums(NamedTuple):
    """Sums over elements of one family.

    delta = base_cpt - base, residual = instruct - base, instruct_delta = instruct_cpt - instruct
    (its three sums are 0 without instruct_cpt). num_both: both delta and residual are not 0;
    num_conflicts: and of opposite sign. num_updates: base_cpt differs from base; num_lost: and is
    equal again after rounding both to bf16.
    """

    num_parameters: int = 0
    base_squared: float = 0.0
    instruct_squared: float = 0.0
    delta_squared: float = 0.0
    residual_squared: float = 0.0
    delta_dot_residual: float = 0.0
    instruct_delta_squared: float = 0.0
    dot_deltas: float = 0.0
    instruct_delta_dot_residual: float = 0.0
    num_both: int = 0
    num_conflicts: int = 0
    num_updates: int = 0
    num_lost: int = 0

    def plus(self, other: FamilySums) -> FamilySums:
        return FamilySums._make(a + b for a, b in zip(self, other, strict=True))


class PairSums(NamedTuple):
    """Sums over elements of two models; distance = right - left; equal as numbers (-0 is 0)."""

    num_elements: int = 0
    left_squared: float = 0.0
    right_squared: float = 0.0
    distance_squared: float = 0.0
    dot: float = 0.0
    num_equal: int = 0

    def plus(self, other: PairSums) -> PairSums:
        return PairSums._make(a + b for a, b in zip(self, other, strict=True))


def family_sums(
    base: Raw, instruct: Raw, base_cpt: Raw, instruct_cpt: Raw | None = None
) -> FamilySums:
    """The sums of one block of the models; not finite where an element is not."""
    first, second, third = _compilable(base), _compilable(instruct), _compilable(base_cpt)
    if instruct_cpt is None:
        return FamilySums(base.size, *_three(first, second, third))
    return FamilySums(base.size, *_four(first, second, third, _compilable(instruct_cpt)))


def pair_sums(left: Raw, right: Raw) -> PairSums:
    """The sums of one block of two models; not finite where an element is not."""
    return PairSums(left.size, *_pair(_compilable(left), _compilable(right)))


def _compilable(raw: Raw) -> Raw:
    return raw.astype(np.float32) if raw.dtype == np.float16 else raw


# --- what follows is compiled ------------------------------------------------------------------
def to_bf16(value: Any) -> Any:  # pragma: no cover
    """One raw element rounded to bf16 and widened again, for use inside compiled code."""
    raise NotImplementedError


_overload = cast("Callable[..., Callable[..., Any]]", overload)


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


@jit
def _three_one(
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


@jit
def _fourth(
    delta: float, residual: float, instruct: Any, instruct_cpt: Any, at: int, sums: Any
) -> None:  # pragma: no cover
    lane = at % LANES
    instruct_delta = widen(instruct_cpt[at]) - widen(instruct[at])
    sums[5, lane] += instruct_delta * instruct_delta
    sums[6, lane] += delta * instruct_delta
    sums[7, lane] += instruct_delta * residual


@jit
def _three(base: Any, instruct: Any, base_cpt: Any) -> Any:  # pragma: no cover
    sums = np.zeros((NUM_SUMS, LANES))
    counts = np.zeros((NUM_COUNTS, LANES), dtype=np.int64)
    whole = base.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            _three_one(base, instruct, base_cpt, start + lane, sums, counts)
    for at in range(whole, base.size):
        _three_one(base, instruct, base_cpt, at, sums, counts)
    return _totals(sums, counts)


@jit
def _four(base: Any, instruct: Any, base_cpt: Any, instruct_cpt: Any) -> Any:  # pragma: no cover
    sums = np.zeros((NUM_SUMS, LANES))
    counts = np.zeros((NUM_COUNTS, LANES), dtype=np.int64)
    whole = base.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            at = start + lane
            delta, residual = _three_one(base, instruct, base_cpt, at, sums, counts)
            _fourth(delta, residual, instruct, instruct_cpt, at, sums)
    for at in range(whole, base.size):
        delta, residual = _three_one(base, instruct, base_cpt, at, sums, counts)
        _fourth(delta, residual, instruct, instruct_cpt, at, sums)
    return _totals(sums, counts)


@jit
def _totals(sums: Any, counts: Any) -> Any:  # pragma: no cover
    s, c = sums.sum(axis=1), counts.sum(axis=1)
    return s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], c[0], c[1], c[2], c[3]


@jit
def _pair_one(left: Any, right: Any, at: int, sums: Any, equal: Any) -> None:  # pragma: no cover
    lane = at % LANES
    one, other = widen(left[at]), widen(right[at])
    distance = other - one
    sums[0, lane] += one * one
    sums[1, lane] += other * other
    sums[2, lane] += distance * distance
    sums[3, lane] += one * other
    equal[lane] += np.int64(one == other)


@jit
def _pair(left: Any, right: Any) -> Any:  # pragma: no cover
    sums = np.zeros((4, LANES))
    equal = np.zeros(LANES, dtype=np.int64)
    whole = left.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            _pair_one(left, right, start + lane, sums, equal)
    for at in range(whole, left.size):
        _pair_one(left, right, at, sums, equal)
    s = sums.sum(axis=1)
    return s[0], s[1], s[2], s[3], equal.sum()
