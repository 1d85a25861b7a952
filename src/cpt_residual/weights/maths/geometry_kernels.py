"""The sums behind geometry and ancestry, in one pass over memory: compiled.

Blocks are flat: bf16 as uint16 bits, or fp32 (fp16 is widened by the caller); the models of one
call may differ in dtype. Differences, products and sums are float64 in fixed lanes (see
`kernel_bodies`); tests compare with plain numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cpt_residual.weights.maths import kernels
from cpt_residual.weights.maths.arithmetic import Raw


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
    models = [base, instruct, base_cpt] + ([] if instruct_cpt is None else [instruct_cpt])
    name = "family_of_three" if instruct_cpt is None else "family_of_four"
    sums, counts = kernels.run(name, *map(_compilable, models), num_sums=8, num_counts=4)
    return FamilySums._make([base.size, *sums, *counts])


def pair_sums(left: Raw, right: Raw) -> PairSums:
    """The sums of one block of two models; not finite where an element is not."""
    models = _compilable(left), _compilable(right)
    sums, counts = kernels.run("pair", *models, num_sums=4, num_counts=1)
    return PairSums._make([left.size, *sums, *counts])


def _compilable(raw: Raw) -> Raw:
    return raw.astype(np.float32) if raw.dtype == np.float16 else raw
