"""The arithmetic of residuals in one pass over memory: compiled, with the bits of `arithmetic`.

Blocks are flat: bf16 as uint16 bits, fp32 as float32 (fp16 is widened by the caller). Every
element is the float64 value of its formula, rounded once, to nearest even. Sums are float64 in
fixed lanes, so they depend neither on threads nor on the processor. What is compiled is in
`kernel_bodies`; property tests compare every kernel with `arithmetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpt_residual.weights import native
from cpt_residual.weights.arithmetic import Raw


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
    sums, counts = native.run("subtract", base, instruct, out, num_sums=4, num_counts=1)
    return SubtractSums(sums[0], sums[1], sums[2], sums[3], counts[0])


def add(target: Raw, delta: npt.NDArray[np.float32], alpha: float, out: Raw) -> MergeSums:
    """out = target + alpha * delta, in target's dtype. `out` shares no memory with the others."""
    _require_apart(out, target, delta)
    return _merged("add", target, delta, out, factor=alpha)


def add_difference(
    target: Raw, base: Raw, instruct: Raw, alpha: float, out: Raw
) -> tuple[MergeSums, int]:
    """out = target + alpha * (instruct - base), in target's dtype; and how many differences float64
    did not hold: with any, `out` is not to be used (see arithmetic.merged_exactly). `out` shares no
    memory with the others."""
    _require_apart(out, target, base, instruct)
    arrays = (target, base, instruct, out)
    sums, counts = native.run("add_difference", *arrays, factor=alpha, num_sums=3, num_counts=4)
    return _merge_sums(sums, counts), counts[3]


def place(
    target: Raw, exact: npt.NDArray[np.float64], move: npt.NDArray[np.float64], out: Raw
) -> MergeSums:
    """out = exact, rounded to target's dtype; `move` is what made it of target (see MergeSums)."""
    return _merged("place", target, exact, move, out)


def dot(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Inner product of two float64 blocks."""
    sums, _ = native.run("dot", left, right, num_sums=1)
    return sums[0]


def _require_apart(out: Raw, *others: npt.NDArray[Any]) -> None:
    """ValueError where what is written would be read again: a vector is, where it has no proof."""
    if any(np.may_share_memory(out, other) for other in others):
        raise ValueError("the result would overwrite what it is made from")


def _merged(name: str, *arrays: npt.NDArray[Any], factor: float = 1.0) -> MergeSums:
    sums, counts = native.run(name, *arrays, factor=factor, num_sums=3, num_counts=3)
    return _merge_sums(sums, counts)


def _merge_sums(sums: Sequence[float], counts: Sequence[int]) -> MergeSums:
    return MergeSums(sums[0], sums[1], sums[2], counts[0], counts[1], counts[2])
