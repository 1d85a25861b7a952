"""The arithmetic of residuals: pure functions on flat arrays of bf16, fp16 or fp32 elements.

Notation (Jindal et al. 2024): residual = theta_instruct - theta_base (eq. 1), merged =
theta_target + alpha * residual (eq. 2 at alpha = 1). Every result is the float64 value of its
formula rounded once, to nearest even, to its dtype. This module is the readable definition;
`kernels` gives the same bits in one pass over memory. Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_residual.weights.maths.dtypes import DtypeName

Raw = npt.NDArray[Any]
"""Elements as they lie on disk: bf16 as its bits in uint16 (numpy has none), float16, float32."""

RAW_DTYPES: Mapping[DtypeName, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Corrections:
    """What fp32 could not hold: the residual at `index` is exactly `residual[index] + value`.

    `index` (int64) and `value` (fp32) are flat, in rising order of index.
    """

    index: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]

    @property
    def count(self) -> int:
        return int(self.index.size)


@dataclass(frozen=True)
class Proof:
    """That base + residual + corrections, rounded once, is instruct.

    num_rounded: elements whose difference fp32 does not hold exactly (each has a correction);
    max_ulps: the largest error of base + residual without corrections, in units in the last place
    of instruct's dtype; num_zero_signs: zeros whose sign no addition can restore (equal as
    numbers); num_wrong: elements that differ even with corrections (0 is the guarantee).
    """

    num_rounded: int = 0
    max_ulps: int = 0
    num_zero_signs: int = 0
    num_wrong: int = 0

    @property
    def bit_exact(self) -> bool:
        return self.num_wrong == 0 and self.num_zero_signs == 0


NO_CORRECTIONS = Corrections(index=np.empty(0, dtype=np.int64), value=np.empty(0, dtype=np.float32))


def to_float32(raw: Raw) -> npt.NDArray[np.float32]:
    """Raw elements as fp32, exactly."""
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32, copy=False)


def to_float64(raw: Raw) -> npt.NDArray[np.float64]:
    """Raw elements as float64, exactly."""
    return to_float32(raw).astype(np.float64)


def round_once(exact: npt.NDArray[np.float64], dtype: DtypeName) -> Raw:
    """float64 to raw elements of `dtype`, to nearest even, without the double rounding of going
    through fp32: the step to fp32 rounds to odd (Boldo and Melquiond 2008), which never lands on a
    tie that the exact value does not have. Too large a value becomes Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = exact.astype(np.float32)
        if dtype == "F32":
            return nearest
        bits = nearest.view(np.uint32)
        inexact = (nearest.astype(np.float64) != exact) & ((bits & 1) == 0) & ~np.isnan(exact)
        outwards = np.abs(exact) > np.abs(nearest.astype(np.float64))
        step = np.where(outwards, np.uint32(1), np.uint32(0xFFFFFFFF))
        odd = np.where(inexact, bits + step, bits)
        if dtype == "F16":
            return odd.view(np.float32).astype(np.float16)
    even = (odd + np.uint32(0x7FFF) + ((odd >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(exact), np.uint32(0x7FC0), even).astype(np.uint16)


def residual(
    base: Raw, instruct: Raw, dtype: DtypeName
) -> tuple[npt.NDArray[np.float32], Corrections, Proof]:
    """instruct - base in fp32, the exact remainder where fp32 does not hold it, and the proof.

    `dtype` is instruct's. fp32 holds the difference of 16-bit models but for elements some 2^16
    apart, and for few elements of fp32 models. An element that is -0.0 in both gets -0.0, the
    neutral element of addition, so that its bits survive.
    """
    left, right = to_float32(instruct), to_float32(base)
    difference = left - right
    remainder = _difference_remainder(left, right)
    difference[(left == 0) & (right == 0) & np.signbit(left)] = -0.0
    rounded = np.flatnonzero(remainder)
    corrections = Corrections(index=rounded, value=remainder[rounded])
    alone = round_once(to_float64(base) + difference, dtype)
    high, low = exact_sum(difference, remainder)
    rebuilt = round_once(merged_exactly(to_float64(base), high, low, 1.0), dtype)
    equal = to_float32(rebuilt) == left
    proof = Proof(
        num_rounded=corrections.count,
        max_ulps=max_ulps(alone, instruct),
        num_zero_signs=int(np.count_nonzero(equal & (_bits(rebuilt) != _bits(instruct)))),
        num_wrong=int(np.count_nonzero(~equal)),
    )
    return difference, corrections, proof


def exact_sum(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """left + right as (high, low): high is the float64 sum, high + low is exact (TwoSum)."""
    wide, other = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Inf is found afterwards, with its tensor's name
        high = wide + other
        part = high - wide
        return high, (wide - (high - part)) + (other - part)


def merged_exactly(
    target: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    alpha: float,
) -> npt.NDArray[np.float64]:
    """target + alpha * (high + low) in float64, the low part last and only where it is not 0."""
    merged = target + alpha * high
    return np.where(low != 0.0, merged + alpha * low, merged)


def add_scaled(
    target: Raw,
    delta: npt.NDArray[np.float32],
    alpha: float,
    corrections: Corrections = NO_CORRECTIONS,
    *,
    dtype: DtypeName,
) -> Raw:
    """target + alpha * delta, rounded once to `dtype`.

    alpha = 0 returns target's bits. Error against the float64 value: at most half an ulp of the
    output dtype, everywhere.
    """
    if alpha == 0.0 and RAW_DTYPES[dtype] == target.dtype:
        return target.copy()
    remainder = np.zeros_like(delta)
    remainder[corrections.index] = corrections.value
    high, low = exact_sum(delta, remainder)
    high = np.where(remainder == 0.0, delta.astype(np.float64), high)  # keeps the sign of zero
    return round_once(merged_exactly(to_float64(target), high, low, alpha), dtype)


def max_ulps(values: Raw, expected: Raw) -> int:
    """The largest distance of two arrays of one dtype, in units in the last place."""
    return int(np.abs(_ordinal(values) - _ordinal(expected)).max(initial=0))


def cosine(dot_product: float, left_squared: float, right_squared: float) -> float | None:
    """Cosine from sums over all elements; None when one side is zero."""
    scale = math.sqrt(left_squared) * math.sqrt(right_squared)
    return dot_product / scale if scale > 0.0 else None


def relative_norm(delta_squared: float, start_squared: float) -> float | None:
    """norm(delta) / norm(start), which is the drift when delta = theta_cpt - theta_b."""
    return math.sqrt(delta_squared) / math.sqrt(start_squared) if start_squared > 0.0 else None


def _difference_remainder(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(left - right) - fl32(left - right), exactly (Knuth's TwoSum; always an fp32 value)."""
    total = left - right
    subtracted = total - left
    remainder = (left - (total - subtracted)) - (right + subtracted)
    return remainder.astype(np.float32, copy=False)


def _bits(values: Raw) -> Raw:
    return values.view(np.uint32 if values.dtype == np.float32 else np.uint16)


def _ordinal(values: Raw) -> npt.NDArray[np.int64]:
    """int64 that counts representable values from zero, so that differences are ulps."""
    bits = _bits(values).astype(np.int64)
    sign = np.int64(1) << np.int64(31 if values.dtype == np.float32 else 15)
    magnitude = bits & (sign - 1)
    return np.where(bits & sign, -magnitude, magnitude)
