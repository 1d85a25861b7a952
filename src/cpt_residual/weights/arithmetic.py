"""The arithmetic of residuals: pure functions on flat torch tensors of bf16, fp16 or fp32.

Notation (Jindal et al. 2024): residual = theta_instruct - theta_base (eq. 1), merged =
theta_target + alpha * residual (eq. 2 at alpha = 1). Every result is the float64 value of its
formula rounded once, to nearest even, to its dtype; where fp32 arithmetic gives the same bits, it
is used. Sums are taken in float64 over rows of fixed length, so they do not depend on the number
of threads. Nothing here reads a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

_ROW = 4096  # elements summed by one thread


@dataclass(frozen=True)
class Corrections:
    """What fp32 could not hold: the residual at `index` is exactly `residual[index] + value`.

    `index` (int64) and `value` (fp32) are flat, in rising order of index.
    """

    index: Tensor
    value: Tensor

    @property
    def count(self) -> int:
        return int(self.index.numel())


@dataclass(frozen=True)
class Proof:
    """That base + residual + corrections, rounded once, is instruct.

    num_rounded: elements whose difference fp32 does not hold exactly (each has a correction);
    max_ulps: the largest error of base + residual without corrections, in units in the last place
    of instruct's dtype; num_zero_signs: zeros whose sign no addition can restore (equal as
    numbers); num_wrong: elements that differ even with corrections (0 is the guarantee).
    """

    num_rounded: int
    max_ulps: int
    num_zero_signs: int
    num_wrong: int

    @property
    def bit_exact(self) -> bool:
        return self.num_wrong == 0 and self.num_zero_signs == 0


def residual(base: Tensor, instruct: Tensor) -> tuple[Tensor, Corrections, Proof]:
    """instruct - base in fp32, the exact remainder where fp32 does not hold it, and the proof.

    fp32 holds it for 16-bit models but for elements some 2^16 apart, and for most elements of fp32
    models. An element that is -0.0 in both gets -0.0, the neutral element of addition, so that its
    bits survive.
    """
    left, right = instruct.float(), base.float()
    difference = left - right
    # An inexact difference is off by at least one unit of the smaller operand's last place, so at
    # least one of the two sums below shows it; when both agree, the difference is exact.
    wrong = _bits(right + difference) != _bits(left)
    wrong |= left - difference != right
    if not bool(wrong.any()):
        return difference, _no_corrections(), Proof(0, 0, 0, 0)
    index = torch.nonzero(wrong).flatten()
    left, right, expected = left[index], right[index], instruct[index]
    both_negative_zero = _is_negative_zero(left) & _is_negative_zero(right)
    difference[index[both_negative_zero]] = -0.0
    remainder = _difference_remainder(left, right)
    rounded = remainder != 0
    corrections = Corrections(index=index[rounded], value=remainder[rounded])
    alone = add_scaled(right, difference[index], 1.0, dtype=instruct.dtype)
    exact = _exact_sum(right, difference[index], remainder, 1.0)
    rebuilt = round_once(exact, instruct.dtype)
    equal = rebuilt == expected
    proof = Proof(
        num_rounded=corrections.count,
        max_ulps=int((_ordinal(alone) - _ordinal(expected)).abs().max()),
        num_zero_signs=int(torch.count_nonzero(equal & (_bits(rebuilt) != _bits(expected)))),
        num_wrong=int(torch.count_nonzero(~equal)),
    )
    return difference, corrections, proof


def add_scaled(
    target: Tensor,
    delta: Tensor,
    alpha: float,
    corrections: Corrections | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """target + alpha * delta, rounded once to `dtype` (target's when not given); delta is fp32.

    alpha = 0 returns target's bits. Error against the float64 value: at most half an ulp of the
    output dtype, everywhere.
    """
    dtype = target.dtype if dtype is None else dtype
    if alpha == 0.0:
        return target.to(dtype, copy=True)
    if alpha == 1.0:  # one fp32 addition is correctly rounded already
        merged = target.float() + delta
    else:
        merged = _exact_sum(target, delta, None, alpha).float()
    out = merged
    if dtype != torch.float32:
        out = merged.to(dtype)
        halfway = _halfway(merged, dtype)
        if halfway.numel():
            exact = _exact_sum(target[halfway], delta[halfway], None, alpha)
            out[halfway] = round_once(exact, dtype)
    if corrections is not None and corrections.count:
        at = corrections.index
        exact = _exact_sum(target[at], delta[at], corrections.value, alpha)
        out[at] = round_once(exact, dtype)
    return out


def round_once(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 to dtype, to nearest even, without the double rounding of going through fp32.

    The step to fp32 rounds to odd (Boldo and Melquiond 2008): it never lands on a tie that the
    exact value does not have.
    """
    nearest = exact.float()
    if dtype == torch.float32:
        return nearest
    bits = nearest.view(torch.int32)
    to_odd = (nearest.double() != exact) & ((bits & 1) == 0) & torch.isfinite(nearest)
    outwards = exact.abs() > nearest.double().abs()
    stepped = torch.where(outwards, bits + 1, bits - 1)
    # The sign of a value that fp32 flushed to zero is in `bits` already.
    return torch.where(to_odd, stepped, bits).view(torch.float32).to(dtype)


def squared_norm(values: Tensor) -> float:
    """Sum of squares in float64; not finite when a value is not."""
    return dot(values, values)


def dot(left: Tensor, right: Tensor) -> float:
    """Inner product in float64, independent of the number of threads."""
    product = left.double() * right.double()
    whole = product.numel() // _ROW * _ROW
    rows = product[:whole].view(-1, _ROW).sum(dim=1)
    tail = product[whole:].view(1, -1).sum(dim=1)
    return _sum(torch.cat([rows, tail]))


def cosine(dot_product: float, left_squared: float, right_squared: float) -> float | None:
    """Cosine from sums over all elements; None when one side is zero."""
    scale = math.sqrt(left_squared) * math.sqrt(right_squared)
    return dot_product / scale if scale > 0.0 else None


def relative_norm(delta_squared: float, start_squared: float) -> float | None:
    """norm(delta) / norm(start), which is the drift when delta = theta_cpt - theta_b."""
    return math.sqrt(delta_squared) / math.sqrt(start_squared) if start_squared > 0.0 else None


def num_sign_conflicts(left: Tensor, right: Tensor) -> tuple[int, int]:
    """(elements of opposite sign, elements where both sides are not zero)."""
    signs = torch.sign(left) * torch.sign(right)
    return int(torch.count_nonzero(signs < 0)), int(torch.count_nonzero(signs))


def num_lost_to_bf16(start: Tensor, end: Tensor) -> tuple[int, int]:
    """(changed elements that are equal again after rounding both to bf16, changed elements)."""
    changed = start.float() != end.float()
    same = start.to(torch.bfloat16) == end.to(torch.bfloat16)
    return int(torch.count_nonzero(changed & same)), int(torch.count_nonzero(changed))


def _sum(values: Tensor) -> float:
    total = cast("list[float]", cast("Any", values).tolist())
    return math.fsum(total) if all(map(math.isfinite, total)) else math.nan


def _no_corrections() -> Corrections:
    return Corrections(
        index=torch.empty(0, dtype=torch.int64), value=torch.empty(0, dtype=torch.float32)
    )


def _exact_sum(target: Tensor, delta: Tensor, remainder: Tensor | None, alpha: float) -> Tensor:
    """float64 target + alpha * delta (+ alpha * remainder, added last: see `residual`)."""
    total = target.double() + alpha * delta.double()
    return total if remainder is None else total + alpha * remainder.double()


def _difference_remainder(left: Tensor, right: Tensor) -> Tensor:
    """(left - right) - fl32(left - right), exactly (Knuth's TwoSum; always an fp32 value)."""
    total = left - right
    subtracted = total - left
    return (left - (total - subtracted)) - (right + subtracted)


def _is_negative_zero(values: Tensor) -> Tensor:
    return (values == 0) & torch.signbit(values)


def _halfway(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Indices where fp32 `values` may lie halfway between two values of a 16-bit dtype."""
    bits = values.view(torch.int32)
    if dtype == torch.bfloat16:
        return torch.nonzero((bits & 0xFFFF) == 0x8000).flatten()
    subnormal = values.abs() < 2.0**-14  # other bit patterns are ties there: take all
    return torch.nonzero(((bits & 0x1FFF) == 0x1000) | subnormal).flatten()


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def _ordinal(values: Tensor) -> Tensor:
    """int64 that counts representable values from zero, so that differences are ulps."""
    bits = _bits(values)
    magnitude = bits.long() & (0x7FFFFFFF if values.dtype == torch.float32 else 0x7FFF)
    return torch.where(bits < 0, -magnitude, magnitude)
