"""Laws of the statistics: mirrored, blind to order, equal to scipy where scipy has them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cpt_residual.evaluation.statistics import ratio_stderr
from cpt_residual.results.paired import (
    compare_paired,
    detectable_difference,
    holm,
    paired_score_interval,
    sign_test_p,
)

scores = st.sampled_from([0.0, 0.25, 0.5, 1.0])
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=30)
reals = st.floats(-5, 5, allow_nan=False, width=32)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_scipys(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test_p(better, worse) == pytest.approx(expected)
    assert sign_test_p(worse, better) == sign_test_p(better, worse)


@settings(max_examples=40)
@given(pairs)
def test_comparing_the_other_way_round_mirrors_everything(rows: list[tuple[float, float]]) -> None:
    a, b = [row[0] for row in rows], [row[1] for row in rows]
    there, back = compare_paired(a, b), compare_paired(b, a)
    assert back.difference == -there.difference
    assert (back.low, back.high) == (
        pytest.approx(-there.high, abs=1e-12),
        pytest.approx(-there.low, abs=1e-12),
    )
    assert (back.won, back.lost) == (there.lost, there.won)
    assert back.p_value == there.p_value
    assert there.low <= there.high


@settings(max_examples=40)
@given(pairs, st.randoms(use_true_random=False))
def test_row_order_does_not_count(rows: list[tuple[float, float]], shuffler: random.Random) -> None:
    mixed = rows[:]
    shuffler.shuffle(mixed)
    a, b = [row[0] for row in rows], [row[1] for row in rows]
    assert compare_paired(a, b) == compare_paired(
        [row[0] for row in mixed], [row[1] for row in mixed]
    )
    whole = [(top, 1.0) for top, _ in rows]
    moved = [(top, 1.0) for top, _ in mixed]
    assert ratio_stderr(whole, seed=5) == ratio_stderr(moved, seed=5)


@settings(max_examples=40)
@given(st.lists(reals, min_size=1, max_size=20))
def test_a_variant_against_itself_shows_nothing(values: list[float]) -> None:
    same = compare_paired(values, values)
    assert (same.difference, same.p_value) == (0, 1)
    assert same.low == pytest.approx(-same.high)
    assert same.low <= 0


_RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(_RIGHT)
def test_the_paired_score_interval_is_mirrored_and_holds_the_difference(
    pairs: list[tuple[bool, bool]],
) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    low, high = paired_score_interval(a, b)
    difference = (sum(a) - sum(b)) / len(a)
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    assert low < high, "it never collapses to a point"
    assert paired_score_interval(b, a) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((54, 0, 0, 0), (-0.0664, 0.0664))],
)
def test_the_paired_score_interval_gives_the_published_numbers(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    """Worked examples of Newcombe (1998); counts: both right, first only, second only, neither."""
    both, first, second, neither = counts
    a = [1.0] * (both + first) + [0.0] * (second + neither)
    b = [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
    assert paired_score_interval(a, b) == pytest.approx(interval, abs=5e-5)


_P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(_P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_as_the_step_down_procedure_does(p_values: list[float], alpha: float) -> None:
    adjusted = holm(p_values)
    rejected = set[int]()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - rank) >= alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(adjusted) if p < alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@given(st.integers(20, 5000), st.floats(0, 0.6), st.sampled_from([0.05, 0.01, 0.001]))
def test_more_prompts_and_a_weaker_level_show_smaller_differences(
    n: int, discordant: float, alpha: float
) -> None:
    found = detectable_difference(n, alpha=alpha, discordant=discordant)
    assert 0 < found <= 1
    assert detectable_difference(2 * n, alpha=alpha, discordant=discordant) <= found
    assert detectable_difference(n, alpha=alpha / 10, discordant=discordant) >= found


@pytest.mark.parametrize(("n", "discordant"), [(194, 0.1), (541, 0.1), (541, 0.3)])
def test_the_detectable_difference_has_its_power(n: int, discordant: float) -> None:
    """By simulation: prompts differ with the stated share, in the direction of the difference."""
    gap = detectable_difference(n, alpha=0.05, discordant=discordant)
    drawn = random.Random(0)
    shown = 0
    for _ in range(600):
        differing = [drawn.random() for _ in range(n)]
        won = sum(value < (discordant + gap) / 2 for value in differing)
        lost = sum((discordant + gap) / 2 <= value < discordant for value in differing)
        shown += sign_test_p(won, lost) < 0.05
    assert 0.7 < shown / 600 < 0.9
