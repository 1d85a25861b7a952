"""TIES-Merging of the CPT delta and the residual: trim, elect a sign, average what agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cpt_residual.errors import CompatibilityError
from cpt_residual.methods.method import Factors, Joined, MergekitMerge, Method, WholeTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpt_residual.methods.method import F32, F64

    Counts = npt.NDArray[np.int64]

_LOW_BITS = 15  # of the 31 magnitude bits; the upper 16 are counted first
_FIRST_NOT_FINITE = 0x7F80_0000 >> _LOW_BITS


class Ties(Method):
    """TIES-Merging (Yadav et al. 2023) of the CPT delta and the residual: keep the `density` of
    largest magnitude of each, per tensor (the paper: of the whole vector), elect a sign per
    element, average what agrees with it."""

    kind: Literal["ties"] = "ties"
    density: Annotated[float, Field(gt=0.0, le=1.0, description="share to keep")] = 0.2
    words: ClassVar[str] = "TIES-Merging (Yadav et al. 2023)"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    needs_base: ClassVar[bool] = True
    num_reads: ClassVar[int] = 5  # two for each threshold

    def for_tensor(self, tensor: WholeTensor) -> Joined:
        num_kept = max(num_to_keep(math.prod(tensor.shape), self.density), 1)

        def threshold(label: str, read: Callable[[], Iterable[F64]]) -> float:
            def blocks() -> Iterable[F32]:
                return (values.astype("float32") for values in read())

            label = f"{tensor.name}: {label}"
            return magnitude_threshold(blocks, num_kept=num_kept, label=label)

        thresholds = (
            threshold("CPT delta", tensor.cpt_delta),
            threshold("residual", tensor.residual),
        )
        return Joined(
            lambda cpt_delta, residual, weights: ties(
                cpt_delta, residual, thresholds=thresholds, weights=weights
            )
        )

    def mergekit(self, factors: Factors) -> MergekitMerge | str:
        """Where all weights are one positive number, which is when both definitions agree."""
        values = {factors.cpt, *factors.residual.values()}
        if len(values) > 1 or min(values) <= 0.0:
            return (
                f"method: ties with cpt_strength {factors.cpt} and alpha * scale "
                f"{sorted(set(factors.residual.values()))}: mergekit's mean is weighted, the same "
                "only where all are one positive number"
            )
        density = {
            name: _mergekit_density(count, self.density)
            for name, count in factors.num_elements.items()
        }
        return MergekitMerge(
            "ties",
            target={"weight": 1.0, "density": density},
            instruct={"weight": 1.0, "density": density},
            common={"normalize": True, "lambda": factors.cpt},
            comments=[
                "differs: elements where the two weighted deltas cancel exactly take the positive",
                "  one (cpt_residual: none); of several at the trimming threshold some are kept",
            ],
        )


def _mergekit_density(num_elements: int, density: float) -> float:
    """A density of which mergekit keeps as many elements as we do: it takes the whole part of
    density * elements, we the next whole number."""
    num_kept = num_to_keep(num_elements, density)
    return 1.0 if num_kept >= num_elements else (num_kept + 0.5) / num_elements


def num_to_keep(num_elements: int, density: float) -> int:
    """How many elements trimming keeps: the least number that is at least `density` of them."""
    return math.ceil(Fraction(repr(density)) * num_elements)  # 0.07 of 100 is 7, as written


def magnitude_threshold(
    blocks: Callable[[], Iterable[F32]], *, num_kept: int, label: str = "values"
) -> float:
    """The `num_kept`-th largest magnitude of all elements, exactly; 0 when there are none.

    Kept is what is >= the threshold: all that tie at it, so at least `num_kept` elements, all of
    them when `num_kept` is their number or more. `blocks` is called twice and gives the same
    elements, in any cut. Price: two passes, less than 1 MB beside one block: magnitudes of fp32
    order like their 31 bits, so the first pass counts the upper 16, the second the other 15 of
    those with the right upper 16. Raises CompatibilityError, with `label`, for NaN and Inf.
    """
    import numpy as np

    assert num_kept > 0
    upper = np.zeros(1 << (31 - _LOW_BITS), dtype=np.int64)
    for bits in map(_magnitude_bits, blocks()):
        upper += np.bincount(bits >> _LOW_BITS, minlength=upper.size)
    if upper[_FIRST_NOT_FINITE:].any():
        raise CompatibilityError(
            f"{label}: NaN or Inf among the elements to trim by magnitude",
            remedy="Nothing can be kept by rank. Use models whose weights are all finite.",
        )
    if not upper.any():
        return 0.0
    rank = min(num_kept, int(upper.sum()))
    high, above = _bin_of_rank(upper, rank)
    lower = np.zeros(1 << _LOW_BITS, dtype=np.int64)
    for bits in map(_magnitude_bits, blocks()):
        within = bits[(bits >> _LOW_BITS) == high] & (lower.size - 1)
        lower += np.bincount(within, minlength=lower.size)
    low, _ = _bin_of_rank(lower, rank - above)
    return float(np.uint32((high << _LOW_BITS) | low).view(np.float32))


def _magnitude_bits(block: F32) -> npt.NDArray[np.uint32]:
    import numpy as np

    assert block.dtype == np.float32
    return np.ascontiguousarray(block).reshape(-1).view(np.uint32) & np.uint32(0x7FFF_FFFF)


def _bin_of_rank(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest element (from 1), and how many lie in bins above."""
    import numpy as np

    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, rank))
    above = int(from_above[place - 1]) if place else 0
    return counts.size - 1 - place, above


def ties(
    cpt_delta: F64 | F32,
    residual: F64 | F32,
    *,
    thresholds: tuple[float, float],
    weights: tuple[float, float],
) -> F64:
    """The displacement from base of TIES-Merging (Yadav et al. 2023) with two vectors.

    With v = (delta, r), weights w = (lambda, alpha) and one threshold each (see
    `magnitude_threshold`), per element:

        trim   t_i = w_i * v_i  where |v_i| >= threshold_i, else 0
        elect  s = sign(t_1 + t_2)
        merge  mean of those t_i with sign(t_i) = s; 0 where there are none

    Zeros and vectors of weight 0 have no sign: they neither vote nor count in the mean, so what
    survives alone moves base by all of its weighted value. Where both agree, the mean gives
    (lambda * delta + alpha * r) / 2, half of plain addition: this is the paper's disjoint mean,
    meant to keep the size of one vector. At lambda = alpha it is the paper's
    theta_base + lambda * merged; (2, 2) restores plain addition where both agree.

    Why the weights enter before the election: the vectors that are merged, lambda * delta and
    alpha * r, are also the ones that vote, so a negative weight votes for the negated vector.
    Magnitudes are compared as fp32, as they were when the threshold was found. Differs from
      the paper's code   at t_1 = -t_2, where it takes the sign that most elements elected: that
                         depends on all other elements; here nothing moves, and the result for
                         negated vectors is the negated result
      mergekit `ties`    which divides by the sum of the agreeing weights (`normalize: true`, so
                         that a lone survivor loses its weight) or by nothing (`false`), elects +
                         at t_1 = -t_2, and trims per tensor
      PEFT `ties`        which elects by the vectors without weights, and + at a sum of 0
    Where nothing survives the result is -0.0: adding it keeps every bit of base.
    """
    import numpy as np

    left = _trimmed(cpt_delta, thresholds[0]) * weights[0]
    right = _trimmed(residual, thresholds[1]) * weights[1]
    elected = np.sign(left + right)
    left_counts = (np.sign(left) == elected) & (elected != 0.0)
    right_counts = (np.sign(right) == elected) & (elected != 0.0)
    total = np.where(left_counts, left, -0.0) + np.where(right_counts, right, -0.0)
    return np.where(left_counts & right_counts, total / 2.0, total)


def _trimmed(values: F64 | F32, threshold: float) -> F64:
    import numpy as np

    with np.errstate(over="ignore"):  # beyond fp32 is Inf, which is kept
        magnitude = np.abs(values).astype(np.float32)
    return np.where(magnitude >= np.float32(threshold), values.astype(np.float64), 0.0)
