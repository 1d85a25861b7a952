"""Known values, and what the statistics refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.results import Sample
from cpt_residual.evaluation.statistics import (
    SeedSummary,
    compare_paired,
    mean_stderr,
    paired_scores,
    ratio_stderr,
    recovery,
)


def _sample(doc_id: int, value: float | list[float], metric: str = "acc", sha: str = "") -> Sample:
    prompt = sha or f"{doc_id:064d}"
    return Sample("task", doc_id, prompt, {metric: value}, "<|end|>", 3, "text")


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


def test_a_comparison_counts_wins_losses_and_all_prompts() -> None:
    result = compare_paired([1, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1])
    assert (result.n, result.num_better, result.num_worse) == (6, 3, 1)
    assert result.difference == pytest.approx(1 / 3)
    assert result.p_value == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert result.low <= result.difference <= result.high


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        compare_paired([1, 2, 3], [1, 2])


def test_samples_are_matched_by_prompt_not_by_order() -> None:
    a = [_sample(0, 1.0), _sample(1, 0.0), _sample(2, [1.0, 0.0], "other")]
    b = [_sample(1, 1.0), _sample(0, 0.0)]
    assert paired_scores(a, b, task="task", metric="acc") == ([1.0, 0.0], [0.0, 1.0])


def test_lists_and_pairs_become_numbers() -> None:
    checks = [_sample(0, [1.0, 0.0, 1.0, 1.0], "inst_level_strict_acc")]
    assert paired_scores(checks, checks, task="task", metric="inst_level_strict_acc")[0] == [0.75]
    text = [_sample(0, [-4 * math.log(2), 2.0], "bits_per_byte")]
    assert paired_scores(text, text, task="task", metric="bits_per_byte")[0] == [pytest.approx(2)]


def test_different_prompts_are_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"not asked the same prompts\.\n  document 0"):
        paired_scores([_sample(0, 1.0)], [_sample(0, 1.0, sha="f" * 64)], task="task", metric="acc")


def test_recovery_is_the_designs() -> None:
    assert recovery(merged=0.8, base_cpt=0.2, instruct=0.9) == pytest.approx(6 / 7)
    assert recovery(merged=0.8, base_cpt=0.9, instruct=0.9) is None


def test_seeds_are_summarized_with_their_spread() -> None:
    summary = SeedSummary((0.5, 0.7, 0.9))
    assert summary.mean == pytest.approx(0.7)
    assert summary.std == pytest.approx(0.2)
    assert SeedSummary((0.5,)).std is None
