"""Words never carry more than the contrasts do."""

from __future__ import annotations

from dataclasses import replace

from cpt_residual.config.contrasts import ContrastFamily
from cpt_residual.report.verdict import judge
from cpt_residual.results.contrasts import make_families
from cpt_residual.results.document import Results, Verdict
from support.report_scenarios import HIGH_DRIFT, NO_FORGETTING, SUCCESS, facts


def verdict_of(results: Results, **changes: object) -> Verdict:
    return judge(results.model_copy(update=changes))


def test_a_loss_that_is_shown_is_told_with_its_size_and_flips() -> None:
    verdict = verdict_of(facts(SUCCESS).results)
    assert verdict.outcome == "lost"
    assert verdict.headline == (
        "Lost on instruction following, strict: base_cpt_residual 84.0 %, instruct 90.7 % "
        "(\u22126.7 points, interval \u221213.0 to \u22121.0; 3 prompts won, 16 lost)."
    )
    assert "has 92.6 % (recovery)" in verdict.text
    assert "better on instruction following, strict: base_cpt_residual 84.0 %, inst" in verdict.text
    assert "lost on new facts, asked in chat: base_cpt_residual" in verdict.text
    assert "better: instruct_cpt_replay (+6.7); kept: base_cpt_sft (+5.7)" in verdict.text
    assert "turns that it does not close" in verdict.text
    assert "46.0 % of the gain is kept" in verdict.text
    assert "at most 5 %" in verdict.text
    assert "does not cover the spread between seeds" in verdict.text


def test_a_wider_margin_keeps_what_a_narrow_one_cannot_decide() -> None:
    given = facts(SUCCESS)
    results = given.results
    families = make_families(
        results.declared, results.kinds, results.table.measures, given.outcomes, margin=0.15
    )
    verdict = verdict_of(results, families=families, margin=0.15)
    assert verdict.outcome == "kept"
    assert verdict.headline.startswith("Kept on instruction following")


def test_after_a_large_drift_the_advice_is_to_lower_it() -> None:
    verdict = verdict_of(facts(HIGH_DRIFT, drift=0.35).results)
    assert verdict.outcome == "lost"
    assert "0.350 of their norm (drift)" in verdict.text
    assert "lower the drift" in verdict.text


def test_without_shown_forgetting_no_repair_can_be_shown() -> None:
    assert "cannot show a repair" in verdict_of(facts(NO_FORGETTING).results).text
    assert "cannot show a repair" not in verdict_of(facts(SUCCESS).results).text


def test_without_contrasts_there_is_no_verdict() -> None:
    verdict = verdict_of(facts(SUCCESS).results, families=())
    assert verdict.outcome == "not_measured"
    assert verdict.headline.startswith("No verdict")
    assert "at most 5 %" not in verdict.text


def test_without_world_probes_nothing_is_said_about_them() -> None:
    text = verdict_of(facts(SUCCESS, world=False).results, families=()).text
    assert "bits per byte" not in text
    assert "recovery" in text


def methods(lines: dict[str, float]) -> Verdict:
    """`SUCCESS` with other ways of adding, that have these shares of strict and of new facts."""
    merged = SUCCESS["base_cpt_residual"]
    ways = {name: replace(merged, kind="method", strict=strict) for name, strict in lines.items()}
    given = facts({**HIGH_DRIFT, **SUCCESS, **ways})
    family = ContrastFamily(
        kinds=["method"], against="base_cpt_residual", measures=["instruction_following"]
    )
    results = given.results
    families = make_families(
        {"ways": family}, results.kinds, results.table.measures, given.outcomes, margin=0.05
    )
    return verdict_of(results, families=families, answered_by="ways")


def test_which_ways_beat_plain_addition_is_answered() -> None:
    better = methods({"ties": 0.5, "lambda": 0.99, "same": 0.842})
    assert better.outcome == "better"
    assert better.headline.startswith(
        "Yes: better than base_cpt_residual on at least one measure and shown worse on none: lambda"
    )
    none = methods({"ties": 0.5, "dare": 0.4, "same": 0.842})
    assert none.headline.startswith("No: none of 3 variants is shown better than base_cpt_residual")
    assert "lost: ties" in none.text
    lost = methods({"ties": 0.5, "dare": 0.4})
    assert lost.headline.startswith("Lost: all of 2 variants, against base_cpt_residual")
