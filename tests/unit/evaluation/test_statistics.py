"""Standard errors of single scores: known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cpt_residual.evaluation.statistics import mean_stderr, ratio_stderr


def test_a_mean_has_the_analytic_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert mean_stderr(values) == pytest.approx(stats.sem(values))
    assert mean_stderr([1.0]) is None


def test_the_bootstrap_of_a_mean_agrees_with_the_analytic_error() -> None:
    values = np.random.default_rng(0).integers(0, 2, 300).tolist()
    bootstrapped = ratio_stderr([(value, 1.0) for value in values], seed=1)
    assert bootstrapped == pytest.approx(mean_stderr(values), rel=0.05)
    assert ratio_stderr([(1.0, 1.0)], seed=1) is None


def test_prompts_with_many_checks_are_drawn_as_a_whole() -> None:
    clustered = [(2.0, 2.0), (0.0, 2.0)] * 50
    apart = [(1.0, 1.0), (0.0, 1.0)] * 100
    assert ratio_stderr(clustered, seed=0) > 1.3 * ratio_stderr(apart, seed=0)


def test_memory_bounded_resampling_needs_no_single_block() -> None:
    pairs = [(float(i % 2), 1.0) for i in range(5000)]
    assert ratio_stderr(pairs, seed=0) == pytest.approx(0.5 / math.sqrt(5000), rel=0.1)
