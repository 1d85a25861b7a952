"""Statistics of scores. Pure: numbers in, numbers out; nothing of it depends on row order.

Two variants are compared on the same prompts, so every test is paired. Random numbers come from a
given seed. Sources: McNemar (1947), exact form; Efron & Tibshirani (1993) for the bootstrap.

Shapes: N prompts, C columns, R resamples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.results import Sample

NUM_RESAMPLES = 2000
_MAX_DRAWS = 2**22  # random numbers in memory at once

_Array = NDArray[np.float64]


# --- one variant ---------------------------------------------------------------------------------
def mean_stderr(values: Sequence[float]) -> float | None:
    """Analytic standard error of a mean, s / sqrt(n); None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1) / math.sqrt(len(values)))


def ratio_stderr(
    pairs: Sequence[tuple[float, float]],
    transform: Callable[[float], float] = float,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Bootstrap standard error, over prompts, of transform(sum of tops / sum of bottoms).

    Instruction-level accuracy is (right checks / checks); bits per byte is (nats / bytes).
    None for fewer than two prompts.
    """
    if len(pairs) < 2:
        return None
    table = np.asarray(sorted(pairs), dtype=np.float64)
    sums = _resampled_sums(table, seed=seed, num_resamples=num_resamples)
    ratios = [top / bottom for top, bottom in sums.tolist() if bottom]
    return float(np.std([transform(ratio) for ratio in ratios], ddof=1))


def _resampled_sums(table_NC: _Array, *, seed: int, num_resamples: int) -> _Array:
    """(num_resamples, C): column sums of bootstrap samples of the N rows; memory is bounded."""
    n, rng = len(table_NC), np.random.default_rng(seed)
    at_once = max(1, _MAX_DRAWS // n)
    sums: list[_Array] = []
    for start in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - start)
        drawn_RN = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=rows * n).reshape(rows, n)
        sums.append(counts_RN.astype(np.float64) @ table_NC)
    return np.concatenate(sums)


# --- two variants --------------------------------------------------------------------------------
@dataclass(frozen=True)
class PairedComparison:
    """Variant a against variant b on the same prompts.

    difference: mean(a) - mean(b). low, high: for right/wrong scores the paired score interval of
    Newcombe (1998, method 10), which stays honest when few prompts or none differ; for others a
    bootstrap interval over prompts. p_value: two-sided, exact sign test on the prompts where they
    differ (for right/wrong scores: McNemar's).
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float
    num_better: int
    num_worse: int


def compare_paired(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, level: float = 0.95
) -> PairedComparison:
    """Compare two variants prompt by prompt; a[i] and b[i] are scores of the same prompt.

    compare(b, a) is compare(a, b) mirrored, and the order of the prompts does not count.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired scores need the same prompts: {len(a)} and {len(b)} given")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if set(a) | set(b) <= {0.0, 1.0}:
        low, high = paired_score_interval(a, b, level=level)
    else:
        low, high = _mean_interval(differences, seed=seed, level=level)
    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    mean = math.fsum(differences.tolist()) / len(differences)
    return PairedComparison(
        n=len(differences),
        difference=mean,
        low=low,
        high=high,
        p_value=sign_test_p(better, worse),
        num_better=better,
        num_worse=worse,
    )


def sign_test_p(better: int, worse: int) -> float:
    """Two-sided exact binomial p-value of `better` against `worse` at even odds; ties left out."""
    n, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_score_interval(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) for paired right/wrong scores: Newcombe (1998), method 10.

    Wilson's intervals of the two shares, joined with their correlation (its numerator lowered by
    n/2 where positive). Never degenerate: with no prompt that differs it still says how much n
    prompts can tell.
    """
    n = len(a)
    both = sum(1 for x, y in zip(a, b, strict=True) if x and y)
    only_a, only_b = round(math.fsum(a)) - both, round(math.fsum(b)) - both
    neither = n - both - only_a - only_b
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
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


def _wilson(successes: int, n: int, z: float) -> tuple[float, float, float]:
    """(share, low, high): Wilson's score interval."""
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return share, (centre - spread) / scale, (centre + spread) / scale


def _mean_interval(differences: _Array, *, seed: int, level: float) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; sorted and turned one way round first, so that
    neither row order nor the order of the variants moves it."""
    ordered, mirrored = np.sort(differences), np.sort(-differences)
    flip = tuple(mirrored.tolist()) > tuple(ordered.tolist())
    table_N1 = (mirrored if flip else ordered)[:, None]
    means = _resampled_sums(table_N1, seed=seed, num_resamples=NUM_RESAMPLES) / len(ordered)
    low, high = (float(np.quantile(means, q)) for q in ((1 - level) / 2, (1 + level) / 2))
    if np.array_equal(ordered, mirrored):
        return -(high - low) / 2, (high - low) / 2
    return (-high, -low) if flip else (low, high)


def paired_scores(
    a: Iterable[Sample], b: Iterable[Sample], *, task: str, metric: str
) -> tuple[list[float], list[float]]:
    """Scores of two variants on the prompts of one task, matched by document and prompt.

    Per-check lists count as their mean; held-out pairs as bits per byte, or as nats per token and
    word (the logarithms of the perplexities). Documents without the metric (another instruction
    type) are left out; different prompts are an error.
    """
    left, right = (_by_prompt(samples, task, metric) for samples in (a, b))
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise EvaluationError(
            f"Task {task}, metric {metric}: the variants were not asked the same prompts.",
            problems=[f"document {doc}, prompt sha256 {sha[:12]}" for doc, sha in odd[:5]],
            remedy="A paired test would compare unlike things. Score both with the same suite.",
        )
    return [left[key] for key in sorted(left)], [right[key] for key in sorted(right)]


def _by_prompt(samples: Iterable[Sample], task: str, metric: str) -> dict[tuple[int, str], float]:
    return {
        (sample.doc_id, sample.prompt_sha256): _scalar(sample.metrics[metric], metric)
        for sample in samples
        if sample.task == task and metric in sample.metrics
    }


def _scalar(value: float | list[float], metric: str) -> float:
    if not isinstance(value, list):
        return float(value)
    if metric.startswith("inst_level_"):
        return math.fsum(value) / len(value)
    log_likelihood, units = value
    nats = -log_likelihood / units if units else 0.0
    return nats / math.log(2) if metric == "bits_per_byte" else nats


# --- words of the design -------------------------------------------------------------------------
def recovery(*, merged: float, base_cpt: float, instruct: float) -> float | None:
    """(merged - base_cpt) / (instruct - base_cpt): 1 is all of the lost ability, 0 none.

    None when instruct is not above base_cpt: then there is nothing to recover.
    """
    lost = instruct - base_cpt
    return (merged - base_cpt) / lost if lost > 0 else None


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
