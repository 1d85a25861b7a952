"""The verdict claims no more than the paired intervals carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cpt_residual.report.facts import Difference, ReportFacts, RoleNames
from cpt_residual.report.measures import Scores
from cpt_residual.report.verdict import Evidence, Verdict, judge, recovery
from cpt_residual.report.write import evidence_of
from support.report_scenarios import (
    HIGH_DRIFT,
    NO_FORGETTING,
    ROLES,
    SUCCESS,
    facts,
)


def verdict_of(given: ReportFacts) -> Verdict:
    return judge(evidence_of(given, Scores.of(given)))


def evidence(
    loss: tuple[float, float, float],
    forgotten: tuple[float, float, float] = (0.6, 0.5, 0.7),
    gain: tuple[float, float, float] = (0.5, 0.4, 0.6),
    *,
    merged: float = 0.8,
) -> Evidence:
    """(value, low, high) of instruct - merged, instruct - instruct_cpt, merged - instruct_cpt."""

    def pair(first: str, second: str, span: tuple[float, float, float]) -> Difference:
        return Difference(first, second, "strict", *span, p_value=0.01, n=194)

    pairs = {
        ("instruct", "base_cpt_residual"): pair("instruct", "base_cpt_residual", loss),
        ("instruct", "instruct_cpt"): pair("instruct", "instruct_cpt", forgotten),
        ("base_cpt_residual", "instruct_cpt"): pair("base_cpt_residual", "instruct_cpt", gain),
    }
    strict = {"instruct": 0.9, "base_cpt": 0.0, "instruct_cpt": 0.3, "base_cpt_residual": merged}
    return Evidence(ROLES, (), {"strict": strict}, {"strict": pairs})


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [
        ((0.01, -0.02, 0.04), "kept"),
        ((0.03, 0.01, 0.045), "kept"),  # the end of the interval counts, not the point
        ((0.03, 0.01, 0.046), "mostly_kept"),
        ((0.01, -0.10, 0.12), "mostly_kept"),  # a small point loss with a wide interval
        ((0.10, 0.05, 0.16), "undecided"),
        ((0.20, 0.10, 0.30), "undecided"),
        ((0.30, 0.16, 0.40), "partly"),
    ],
)
def test_outcome_follows_the_interval_and_not_the_point(
    loss: tuple[float, float, float], outcome: str
) -> None:
    assert judge(evidence(loss)).outcome == outcome


def test_better_than_naive_but_less_than_half_recovered_is_a_failure() -> None:
    assert judge(evidence((0.5, 0.4, 0.6), merged=0.4)).outcome == "failed"


def test_far_below_instruct_and_no_better_than_naive_is_a_failure() -> None:
    verdict = judge(evidence((0.30, 0.2, 0.4), gain=(0.02, -0.03, 0.07), merged=0.6))
    assert verdict.outcome == "failed"
    assert "No difference between the residual and CPT of the instruct model" in verdict.text


def test_worse_than_naive_is_said_with_positive_numbers() -> None:
    verdict = judge(evidence((0.10, 0.02, 0.14), (0.1, 0.05, 0.2), gain=(-0.1, -0.15, -0.05)))
    assert (
        "worse than CPT of the instruct model by 10.0 points (95 % CI 5.0 to 15.0)" in verdict.text
    )


def test_nothing_to_repair_without_shown_forgetting() -> None:
    given = evidence((0.01, -0.02, 0.04), forgotten=(0.02, -0.01, 0.05))
    verdict = judge(given)
    assert verdict.outcome == "nothing_to_repair"
    assert "cannot show a repair" in verdict.headline


def test_an_instruct_model_that_follows_nothing_gives_no_verdict() -> None:
    given = evidence((0.0, 0.0, 0.0))
    weak = replace(given, score={"strict": {"instruct": 0.02, "base_cpt_residual": 0.02}})
    verdict = judge(weak)
    assert verdict.outcome == "not_measured"
    assert "nothing to keep or to lose" in verdict.headline
    assert "CPT of the instruct model" not in verdict.text


def test_unscored_variants_give_no_verdict() -> None:
    verdict = judge(Evidence(ROLES, (), {}))
    assert verdict.outcome == "not_measured"
    assert "not both scored on the same" in verdict.headline
    assert "95 %" not in verdict.text


def test_success_is_told_with_its_limits_and_its_rivals() -> None:
    verdict = verdict_of(facts(SUCCESS))
    assert verdict.outcome == "mostly_kept"
    assert "kept most of instruction following" in verdict.headline
    assert "new knowledge was partly lost" in verdict.text
    assert "of the gain is kept" in verdict.text
    assert "turns that it does not close" in verdict.text
    replay = "instruct_cpt_replay (90.7 %) follows instructions better than the residual"
    assert replay in verdict.text
    assert "1.25 times the residual route), and it needs instruction data" in verdict.text
    assert "base_cpt_sft knows more new facts" in verdict.text
    assert "they do not cover the spread between seeds" in verdict.text


def test_high_drift_is_called_a_failure_with_the_drift_beside_it() -> None:
    verdict = verdict_of(facts(HIGH_DRIFT, drift=0.35))
    assert verdict.outcome == "failed"
    assert verdict.headline.startswith("The residual did not work here")
    assert "0.350 of their norm (drift)" in verdict.text
    assert "Lower the drift" in verdict.text
    assert "yet far from instruct" in verdict.text


def test_no_forgetting_scenario() -> None:
    verdict = verdict_of(facts(NO_FORGETTING))
    assert verdict.outcome == "nothing_to_repair"
    assert "The residual is worse than CPT of the instruct model" in verdict.text


def test_without_world_probes_nothing_is_said_about_them() -> None:
    verdict = verdict_of(facts(SUCCESS, world=False))
    assert "bits per byte" not in verdict.text
    assert "Instruction obeyed" not in verdict.text


def test_without_instruct_cpt_its_forgetting_is_unknown() -> None:
    given = evidence((0.01, -0.02, 0.04))
    roles = RoleNames("base", "instruct", "base_cpt", None, "base_cpt_residual")
    verdict = judge(replace(given, roles=roles))
    assert verdict.outcome == "kept"
    assert "its forgetting is unknown" in verdict.text


def test_another_alpha_is_only_a_hint() -> None:
    lines = dict(SUCCESS)
    lines["base_cpt_residual_alpha_0.75"] = replace(
        lines["base_cpt_residual_alpha_0.75"], strict=0.88
    )
    text = verdict_of(facts(lines)).text
    assert "alpha = 0.75 scored higher (88.1 %), but it was picked on the same prompts" in text


def test_recovery_is_of_what_the_base_lacked() -> None:
    assert recovery(evidence((0.1, 0.0, 0.2), merged=0.45)) == pytest.approx(0.5)
    assert recovery(Evidence(ROLES, (), {})) is None
