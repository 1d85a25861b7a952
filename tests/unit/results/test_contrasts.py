"""Contrasts: declared families, one level for the report, four readings."""

from __future__ import annotations

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.contrasts import ContrastFamily, Kind
from cpt_residual.config.measures import Measure
from cpt_residual.errors import EvaluationError
from cpt_residual.results.contrasts import REPORT_ALPHA, Family, Reading, make_families
from cpt_residual.results.outcomes import Outcomes, joined
from cpt_residual.results.paired import compare_paired
from cpt_residual.stages.detectable import detectable_lines

MEASURE = Measure(task="t", metric="acc", label="a measure", short="m", role="reasoning")
KINDS: dict[str, Kind] = {
    "instruct": "instruct",
    "one": "method",
    "two": "method",
    "odd": "control",
}


def outcomes(num_right: dict[str, int], n: int = 200) -> Outcomes:
    """The first `num_right` of n prompts are right."""
    return Outcomes(
        {
            MEASURE.name: {
                k: {f"{i:03d}": float(i < r) for i in range(n)} for k, r in num_right.items()
            }
        }
    )


def family(given: Outcomes, *, margin: float = 0.05, **declared: object) -> Family:
    stated = {"variants": ["one"], "against": "instruct", "measures": ["reasoning"], **declared}
    (found,) = make_families(
        {"f": ContrastFamily.model_validate(stated)}, KINDS, [MEASURE], given, margin=margin
    )
    return found


@pytest.mark.parametrize(
    ("right", "reading"),
    [(180, "better"), (150, "kept"), (149, "kept"), (145, "undecided"), (120, "lost")],
)
def test_the_four_readings(right: int, reading: Reading) -> None:
    (contrast,) = family(outcomes({"instruct": 150, "one": right})).contrasts
    assert contrast.reading == reading
    assert (contrast.won, contrast.lost) == (max(0, right - 150), max(0, 150 - right))
    assert contrast.low <= contrast.difference <= contrast.high


def test_a_small_loss_that_is_shown_is_still_kept_within_the_margin() -> None:
    (contrast,) = family(outcomes({"instruct": 150, "one": 140}), margin=0.2).contrasts
    assert contrast.p_holm < REPORT_ALPHA
    assert contrast.reading == "kept"


def test_nothing_is_kept_of_what_was_never_there() -> None:
    (contrast,) = family(outcomes({"instruct": 10, "one": 10})).contrasts
    assert contrast.reading == "undecided"


def test_where_less_is_better_a_smaller_score_wins() -> None:
    less = MEASURE.model_copy(update={"higher_is_better": False})
    declared = ContrastFamily(variants=["one"], against="instruct", measures="all")
    given = outcomes({"instruct": 150, "one": 120})
    (found,) = make_families({"f": declared}, KINDS, [less], given, margin=0.05)
    assert found.contrasts[0].reading == "better"
    assert (found.contrasts[0].won, found.contrasts[0].lost) == (30, 0)


def test_a_family_is_corrected_for_its_tests_and_the_report_for_its_families() -> None:
    given = outcomes({"instruct": 150, "one": 158, "two": 150, "odd": 150})
    alone = family(given).contrasts[0]
    assert alone.reading == "better"
    both = family(given, variants="all").contrasts
    assert [each.variant for each in both] == ["one", "two", "odd"]
    assert both[0].p_holm == pytest.approx(3 * alone.p_holm)
    assert both[0].high > alone.high
    declared = ContrastFamily(variants=["one"], against="instruct", measures="all")
    twice = make_families({"a": declared, "b": declared}, KINDS, [MEASURE], given, margin=0.05)
    assert [each.alpha for each in twice] == [REPORT_ALPHA / 2] * 2


def test_kinds_choose_variants_and_never_the_one_that_is_compared_with() -> None:
    given = outcomes(dict.fromkeys(KINDS, 100))
    found = family(given, variants=["odd"], kinds=["method"], against="two")
    assert found.variants == ("one", "odd")


def test_what_was_not_evaluated_is_not_tested() -> None:
    given = outcomes({"instruct": 100})
    declared = ContrastFamily(variants=["one"], against="instruct", measures="all")
    assert make_families({"f": declared}, KINDS, [MEASURE], given, margin=0.05) == ()
    absent = ContrastFamily(variants=["one"], against="nobody", measures="all")
    assert make_families({"f": absent}, KINDS, [MEASURE], given, margin=0.05) == ()


def test_the_outcome_of_a_family_with_several_variants() -> None:
    def outcome(one: int, two: int) -> Reading:
        given = outcomes({"instruct": 150, "one": one, "two": two})
        return family(given, variants=["one", "two"]).outcome

    assert outcome(180, 100) == "better"
    assert outcome(100, 110) == "lost"
    assert outcome(150, 150) == "kept"
    assert outcome(150, 100) == "undecided"


def test_different_prompts_are_an_error() -> None:
    given = Outcomes({"m": {"a": {"0:aa": 1.0}, "b": {"0:bb": 1.0}}})
    with pytest.raises(EvaluationError, match="not asked the same prompts"):
        given.pair("m", "a", "b")


def test_a_prompt_that_several_seeds_ask_counts_once_with_its_mean() -> None:
    first = Outcomes({"m": {"a": {"0:same": 1.0, "1:of_seed_0": 1.0}}})
    second = Outcomes({"m": {"a": {"0:same": 0.0, "1:of_seed_1": 0.0}}})
    pooled = {"0:same": 0.5, "1:of_seed_0": 1.0, "1:of_seed_1": 0.0}
    assert joined([first, second]).values == {"m": {"a": pooled}}


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("gap", [0.0, 0.25])
def test_few_scores_with_equal_differences_show_nothing(n: int, gap: float) -> None:
    scores = [0.5 + i / 100 for i in range(n)]
    result = compare_paired([each + gap for each in scores], scores)
    assert result.p_value == (2 * 0.5**n if gap else 1.0)
    assert result.low < gap - 0.4


def test_differences_of_scores_are_tested_exactly_then_by_t() -> None:
    assert compare_paired([0.9, 0.8, 0.7, 0.5], [0.1, 0.2, 0.3, 0.5]).p_value == 2 / 8
    many = compare_paired([0.1 * (i % 4) for i in range(40)], [0.1] * 40)
    assert many.p_value == pytest.approx(0.0080543, abs=1e-6)


def test_a_comparison_counts_won_and_lost_prompts() -> None:
    result = compare_paired([1, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1])
    assert (result.n, result.won, result.lost) == (6, 3, 1)
    assert result.difference == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="3 and 2"):
        compare_paired([1, 2, 3], [1, 2])


def test_a_plan_says_which_differences_its_prompts_show() -> None:
    *suites, note = detectable_lines(compose(["+experiment=tiny"]))
    (world,) = suites
    assert world.startswith("suite world can show differences of IF strict ")
    assert "(194 prompts)" in world
    assert "80 % power" in note
    stock = list(detectable_lines(compose(["+experiment=llama3_500m"])))
    assert "IF strict 4.5 (541 prompts), MMLU 1.0 (14,042 prompts)" in stock[0]
    assert not list(detectable_lines(compose(["+experiment=tiny", "evaluation.variants=[base]"])))
