"""instruct - base of one block, with the proof that it gives instruct back, and its sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cpt_residual.weights.maths import arithmetic, kernels
from cpt_residual.weights.maths.arithmetic import (
    NO_CORRECTIONS,
    Corrections,
    Proof,
    Raw,
    to_float32,
)
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.maths.kernels import SubtractSums


@dataclass
class Tally:
    """Sums over the elements of a block, a tensor, or all tensors; `error_squared` is of what is
    stored against the exact difference."""

    base_squared: float = 0.0
    instruct_squared: float = 0.0
    residual_squared: float = 0.0
    base_dot_residual: float = 0.0
    error_squared: float = 0.0
    num_rounded: int = 0
    max_ulps: int = 0
    num_zero_signs: int = 0
    num_wrong: int = 0

    @classmethod
    def of(cls, sums: SubtractSums, proof: Proof, error_squared: float = 0.0) -> Tally:
        return cls(
            sums.base_squared,
            sums.instruct_squared,
            sums.residual_squared,
            sums.base_dot_residual,
            error_squared,
            proof.num_rounded,
            proof.max_ulps,
            proof.num_zero_signs,
            proof.num_wrong,
        )

    @classmethod
    def total(cls, parts: Iterable[Tally]) -> Tally:
        found = cls()
        for part in parts:
            found.add(part)
        return found

    def add(self, other: Tally) -> None:
        max_ulps = max(self.max_ulps, other.max_ulps)
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.max_ulps = max_ulps

    @property
    def bit_exact(self) -> bool:
        return self.num_wrong == 0 and self.num_zero_signs == 0

    @property
    def relative_error(self) -> float:
        return arithmetic.relative_norm(self.error_squared, self.residual_squared) or 0.0

    def broken(self, name: str) -> list[str]:
        """Lines on values that are not finite numbers."""
        if not math.isfinite(self.base_squared):
            return [f"{name}: NaN or Inf in base"]
        if not math.isfinite(self.instruct_squared):
            return [f"{name}: NaN or Inf in instruct"]
        if not math.isfinite(self.residual_squared):
            return [f"{name}: instruct - base is larger than fp32 can hold"]
        return []


def store_exactly(
    base: Raw, instruct: Raw, dtype: DtypeName, out: npt.NDArray[np.float32]
) -> tuple[Tally, Corrections]:
    """out = instruct - base of one block, with its proof and its corrections; `dtype` is
    instruct's."""
    wide = [to_float32(raw) if raw.dtype == np.float16 else raw for raw in (base, instruct)]
    sums = kernels.subtract(wide[0], wide[1], out)
    if not sums.num_suspect or not math.isfinite(sums.residual_squared):
        return Tally.of(sums, Proof()), NO_CORRECTIONS
    out[:], corrections, proof = arithmetic.residual(base, instruct, dtype)
    return Tally.of(sums, proof), corrections


def store_rounded(
    base: Raw, instruct: Raw, dtype: DtypeName, out: Raw
) -> tuple[Tally, Corrections]:
    """out = instruct - base of one block, rounded once to bf16, with the error that this makes."""
    tally, _ = store_exactly(base, instruct, dtype, np.empty(base.size, dtype=np.float32))
    out[:] = arithmetic.round_once(exact_difference(base, instruct), "BF16")
    proof, tally.error_squared = lossy_tally(base, instruct, arithmetic.to_float64(out), dtype)
    tally.num_rounded, tally.num_zero_signs = 0, proof.num_zero_signs
    tally.max_ulps, tally.num_wrong = proof.max_ulps, proof.num_wrong
    return tally, NO_CORRECTIONS


def exact_difference(base: Raw, instruct: Raw) -> npt.NDArray[np.float64]:
    """instruct - base in float64; of two zeros, instruct's (see kernel_bodies)."""
    left, right = arithmetic.to_float64(instruct), arithmetic.to_float64(base)
    with np.errstate(invalid="ignore"):  # Inf is found by the sums, with its tensor's name
        return np.where((left == 0.0) & (right == 0.0), left, left - right)


def lossy_tally(
    base: Raw, instruct: Raw, stored: npt.NDArray[np.float64], dtype: DtypeName
) -> tuple[Proof, float]:
    """How far base + `stored` is from instruct, and the squared error of `stored` itself."""
    exact = exact_difference(base, instruct)
    rebuilt = arithmetic.round_once(arithmetic.to_float64(base) + stored, dtype)
    error = stored - exact
    equal = to_float32(rebuilt) == to_float32(instruct)
    shape = (equal.size, rebuilt.itemsize)
    left, right = (raw.view(np.uint8).reshape(shape) for raw in (rebuilt, instruct))
    other_bits = left != right
    proof = Proof(
        max_ulps=arithmetic.max_ulps(rebuilt, instruct),
        num_zero_signs=int(np.count_nonzero(equal & other_bits.any(axis=1))),
        num_wrong=int(np.count_nonzero(~equal)),
    )
    return proof, kernels.dot(error, error)
