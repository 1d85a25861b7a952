"""Statistics of paired scores. Pure: numbers in, numbers out; the order of prompts never counts.

Sources: McNemar (1947), exact form; Newcombe (1998), method 10; Holm (1979); Connor (1987), the
number of prompts that a McNemar test needs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_POWER = 0.8
_STEPS = 60
_EXACT = 15
"""So many differences are tested with all 2**15 choices of their signs."""
_TIE = 1e-9


@dataclass(frozen=True)
class PairedComparison:
    """Variant a against variant b on the same `n` prompts.

    difference: mean(a) - mean(b). For right/wrong scores low, high are Newcombe's paired score
    interval, which stays honest when few prompts or none differ, and p_value is McNemar's exact
    two-sided test; for others see `_mean_difference`.
    won, lost: prompts on which a is better, worse.
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float
    won: int
    lost: int


def compare_paired(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95
) -> PairedComparison:
    """Compare two variants prompt by prompt; a[i] and b[i] are scores of the same prompt.

    compare(b, a) is compare(a, b) mirrored.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired scores need the same prompts: {len(a)} and {len(b)} given")
    differences = [left - right for left, right in zip(a, b, strict=True)]
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    mean = math.fsum(differences) / len(differences)
    if set(a) | set(b) <= {0.0, 1.0}:
        low, high = paired_score_interval(a, b, level=level)
        p_value = sign_test_p(won, lost)
    else:
        low, high, p_value = _mean_difference(a, b, differences, level)
    return PairedComparison(len(differences), mean, low, high, p_value, won, lost)


def sign_test_p(better: int, worse: int) -> float:
    """Two-sided exact binomial p-value of `better` against `worse` at even odds; ties left out."""
    n, fewer = better + worse, min(better, worse)
    term = total = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        total += term
    return min(1.0, 2 * total / 2**n)


def paired_score_interval(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) for paired right/wrong scores: Newcombe (1998), method 10.

    Wilson's intervals of the two shares, joined with their correlation (its numerator lowered by
    n/2 where positive). With no prompt that differs it still says how much n prompts can tell.
    """
    n = len(a)
    both = sum(1 for x, y in zip(a, b, strict=True) if x and y)
    only_a, only_b = round(math.fsum(a)) - both, round(math.fsum(b)) - both
    neither = n - both - only_a - only_b
    z = quantile((1 + level) / 2)
    (p, p_low, p_high), (q, q_low, q_high) = (
        _wilson(both + only_a, n, z),
        _wilson(both + only_b, n, z),
    )
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    covariance = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = covariance / math.sqrt(product) if product else 0.0

    def width(left: float, right: float) -> float:
        return math.sqrt(max(left * left - 2 * phi * left * right + right * right, 0.0))

    low = p - q - width(p - p_low, q_high - q)
    high = p - q + width(p_high - p, q - q_low)
    return max(low, -1.0), min(high, 1.0)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values, in the given order: comparing each with alpha keeps the
    chance of any false rejection in the family at or below alpha, whatever their dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def detectable_difference(n: int, *, alpha: float, discordant: float) -> float:
    """Smallest true difference that `n` prompts show with 80 % power in an exact McNemar test.

    `discordant`: the share of prompts on which the variants differ. At least as many prompts have
    to differ one way as the exact test needs to reach `alpha` at all. 1.0 where n is too small.
    """
    z_alpha, z_power = quantile(1 - alpha / 2), quantile(_POWER)

    def needed(difference: float) -> float:
        share = max(discordant, difference)
        spread = z_alpha * math.sqrt(share) + z_power * math.sqrt(share - difference**2)
        return (spread / difference) ** 2

    floor = math.ceil(1 - math.log2(alpha)) / n
    if floor >= 1 or needed(1.0) > n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= n else (middle, high)
    return max(high, floor)


def quantile(share: float) -> float:
    """Quantile of the standard normal distribution."""
    return statistics.NormalDist().inv_cdf(share)


def _mean_difference(
    a: Sequence[float], b: Sequence[float], differences: Sequence[float], level: float
) -> tuple[float, float, float]:
    """(low, high, p) of a mean difference of scores that are not just right or wrong.

    p: exact sign-flip test up to `_EXACT` differences that are not 0, then Student's t (the sign
    test where all differ by the same). Interval: Student's t, at least as wide as the range of the
    scores (1 at least) times the share of prompts that may be of a kind that none of these is.
    """
    from scipy.special import stdtr, stdtrit

    n, mean = len(differences), math.fsum(differences) / len(differences)
    reach = max(max(*a, *b) - min(*a, *b), 1.0) * (1 - (1 - level) ** (1 / n))
    moved = [each for each in differences if each]
    error = 0.0
    if n > 1:
        squares = math.fsum((each - mean) ** 2 for each in differences)
        error = math.sqrt(squares / (n - 1) / n)
        reach = max(reach, float(stdtrit(n - 1, (1 + level) / 2)) * error)
    if len(moved) <= _EXACT:
        p_value = _sign_flip_p(moved)
    elif error > _TIE * abs(mean):
        p_value = min(1.0, 2 * float(stdtr(n - 1, -abs(mean) / error)))
    else:
        p_value = sign_test_p(sum(d > 0 for d in moved), sum(d < 0 for d in moved))
    return mean - reach, mean + reach, p_value


def _sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided share of all choices of signs whose sum is at least as far from 0."""
    sums = [0.0]
    for each in differences:
        sums = [total + signed for total in sums for signed in (each, -each)]
    least = abs(math.fsum(differences)) - _TIE * math.fsum(map(abs, differences))
    return sum(abs(total) >= least for total in sums) / len(sums)


def _wilson(successes: int, n: int, z: float) -> tuple[float, float, float]:
    """(share, low, high): Wilson's score interval."""
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return share, (centre - spread) / scale, (centre + spread) / scale


@dataclass(frozen=True)
class SeedSummary:
    """A score over seeds. `std` is the sample standard deviation, None for one seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def recovery(*, merged: float, base_cpt: float, instruct: float) -> float | None:
    """(merged - base_cpt) / (instruct - base_cpt): 1 is all of the lost ability, 0 none.

    None when instruct is not above base_cpt: then there is nothing to recover.
    """
    lost = instruct - base_cpt
    return (merged - base_cpt) / lost if lost > 0 else None
