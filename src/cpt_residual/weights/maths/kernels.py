"""The arithmetic of residuals in one pass over memory: compiled, with the bits of `arithmetic`.

Blocks are flat: bf16 as uint16 bits, fp32 as float32 (fp16 is widened by the caller). Every
element is the float64 value of its formula, rounded once, to nearest even. Sums are float64 in
fixed lanes, so they depend neither on threads nor on the processor. What is compiled is in
`kernel_bodies`; property tests compare every kernel with `arithmetic`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import add as plus
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from cpt_residual.errors import LaunchError
from cpt_residual.weights.maths.arithmetic import Raw

_NUM_ARRAYS = 4


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


def run(
    name: str, *arrays: npt.NDArray[Any], factor: float = 1.0, num_sums: int, num_counts: int = 0
) -> tuple[list[float], list[int]]:
    """Runs the body `name` of kernel_bodies over all elements; its sums and its counts.

    arrays: two to four flat, contiguous, aligned arrays of one size, of uint16, float32 or float64.
    Raises ValueError for others: compiled code checks no bounds.
    """
    first, bodies = arrays[0], _bodies()
    for each in arrays:
        if each.size != first.size or not (each.flags.c_contiguous and each.flags.aligned):
            raise ValueError(
                f"{name}: {each.size} elements beside {first.size}, or not in one piece"
            )
    given = arrays + (first,) * (_NUM_ARRAYS - len(arrays))
    sums = np.zeros((bodies.NUM_SUMS, bodies.LANES))
    counts = np.zeros((bodies.NUM_COUNTS, bodies.LANES), dtype=np.int64)
    _kernel(name)(*given, factor, sums, counts)
    totals = [reduce(plus, lanes) for lanes in sums[:num_sums].tolist()]  # numpy's are pairwise
    return totals, counts[:num_counts].sum(axis=1).tolist()


def _cache_folder() -> str:
    """Where numba may keep what it has compiled; empty where the user has no such folder."""
    with contextlib.suppress(RuntimeError, OSError):  # no home, or one that takes nothing
        home = Path.home()
        place = home / ".cache" / "cpt_residual" / "numba"
        if home.is_absolute() and home.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK | os.X_OK):
                return str(place)
    return ""


@cache
def _kernel(name: str) -> Callable[..., None]:
    return cast("Callable[..., None]", _bodies().over_all(getattr(_bodies(), name)))


@cache
def _bodies() -> ModuleType:
    """The compiled half. What numba compiles is kept in the user's cache folder, never beside the
    source; without such a folder it is compiled anew in every process."""
    import numba

    config = cast("Any", numba).config
    if config.DISABLE_JIT:
        raise LaunchError(
            "numba is told not to compile (NUMBA_DISABLE_JIT)",
            remedy="The arithmetic of residuals needs it: unset the variable and run it again.",
        )
    config.CACHE_DIR = config.CACHE_DIR or _cache_folder()
    from cpt_residual.weights.maths import kernel_bodies

    return kernel_bodies


def subtract(base: Raw, instruct: Raw, out: npt.NDArray[np.float32]) -> SubtractSums:
    """out = instruct - base in fp32."""
    sums, counts = run("subtract", base, instruct, out, num_sums=4, num_counts=1)
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
    sums, counts = run("add_difference", *arrays, factor=alpha, num_sums=3, num_counts=4)
    return _merge_sums(sums, counts), counts[3]


def place(
    target: Raw, exact: npt.NDArray[np.float64], move: npt.NDArray[np.float64], out: Raw
) -> MergeSums:
    """out = exact, rounded to target's dtype; `move` is what made it of target (see MergeSums)."""
    return _merged("place", target, exact, move, out)


def dot(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Inner product of two float64 blocks."""
    sums, _ = run("dot", left, right, num_sums=1)
    return sums[0]


def _require_apart(out: Raw, *others: npt.NDArray[Any]) -> None:
    """ValueError where what is written would be read again: a vector is, where it has no proof."""
    if any(np.may_share_memory(out, other) for other in others):
        raise ValueError("the result would overwrite what it is made from")


def _merged(name: str, *arrays: npt.NDArray[Any], factor: float = 1.0) -> MergeSums:
    sums, counts = run(name, *arrays, factor=factor, num_sums=3, num_counts=3)
    return _merge_sums(sums, counts)


def _merge_sums(sums: Sequence[float], counts: Sequence[int]) -> MergeSums:
    return MergeSums(sums[0], sums[1], sums[2], counts[0], counts[1], counts[2])
