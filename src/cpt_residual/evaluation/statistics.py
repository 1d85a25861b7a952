"""Standard errors of scores. Pure: numbers in, numbers out; nothing of it depends on row order.

Random numbers come from a given seed. Source: Efron & Tibshirani (1993) for the bootstrap.

Shapes: N prompts, C columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
_MAX_DRAWS = 2**22  # random numbers in memory at once

_Array = NDArray[np.float64]


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
