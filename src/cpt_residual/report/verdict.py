"""The verdict in plain words: a reading of the contrasts, and never more than they carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cpt_residual.report.format import percent, points
from cpt_residual.results.contrasts import REPORT_ALPHA, Contrast, Family, Reading
from cpt_residual.results.document import Results, Verdict
from cpt_residual.results.paired import recovery

_TURN_CLOSING_SHARE = 0.10
"""From here on, the part of a drop that is unclosed turns is worth a sentence."""
_LISTED = 3
"""Families with more contrasts are summed up by measure."""
_READINGS: tuple[Reading, ...] = ("better", "kept", "undecided", "lost")


def judge(results: Results, *, num_seeds: int = 1) -> Verdict:
    """The verdict on `results`, whose own verdict is not looked at; `num_seeds`: of the prompts."""
    answer = results.family(results.answered_by)
    others = [family for family in results.families if family is not answer]
    subjects = (
        [] if answer is None or len(answer.contrasts) == 1 else _by_measure(results, answer),
        *(_family(results, family) for family in others),
        [*_recovered(results), *_repair(results), *_turns(results)],
        [*_bits(results), *_drift(results, answer)],
        _limits(results, num_seeds),
    )
    return Verdict(
        outcome="not_measured" if answer is None else answer.outcome,
        headline=_headline(results, answer),
        paragraphs=tuple(" ".join(sentences) for sentences in subjects if sentences),
    )


def contrast_words(results: Results, contrast: Contrast) -> str:
    """One contrast in a sentence."""
    measure = results.table.named(contrast.measure)
    first, second = (
        f"{results.label(name)} {percent(results.table.value(name, measure))}"
        for name in (contrast.variant, contrast.against)
    )
    gap = f"{points(contrast.difference, signed=True)} points"
    interval = f"{points(contrast.low, signed=True)} to {points(contrast.high, signed=True)}"
    return (
        f"{contrast.reading} on {measure.label}: {first}, {second} ({gap}, interval {interval}; "
        f"{contrast.won} prompts won, {contrast.lost} lost)"
    )


def _headline(results: Results, answer: Family | None) -> str:
    if answer is None:
        return (
            "No verdict: no contrast that answers the question was measured (see `verdict` and "
            "`contrasts` in the configuration)."
        )
    if len(answer.contrasts) == 1:
        (contrast,) = answer.contrasts
        text = contrast_words(results, contrast)
        return f"{text[0].upper()}{text[1:]}."
    against = results.label(answer.against)
    winners = [
        name
        for name in answer.variants
        if "better" in (found := answer.readings(name)) and "lost" not in found
    ]
    if not winners and answer.outcome in ("kept", "lost"):
        return (
            f"{answer.outcome.capitalize()}: all of {len(answer.variants)} variants, against "
            f"{against} ({len(answer.contrasts)} tests)."
        )
    if not winners:
        return (
            f"No: none of {len(answer.variants)} variants is shown better than {against} on one "
            f"measure without being worse on another ({len(answer.contrasts)} tests)."
        )
    names = ", ".join(map(results.label, winners))
    return (
        f"Yes: better than {against} on at least one measure and shown worse on none: {names} "
        f"({len(answer.contrasts)} tests)."
    )


def _family(results: Results, family: Family) -> list[str]:
    asked = [family.question] if family.question else []
    if len(family.contrasts) > _LISTED:
        return [*asked, *_by_measure(results, family)]
    return [*asked, "; ".join(contrast_words(results, each) for each in family.contrasts) + "."]


def _by_measure(results: Results, family: Family) -> list[str]:
    """Who has which reading against the same variant, measure by measure."""
    found: list[str] = []
    for name in dict.fromkeys(each.measure for each in family.contrasts):
        tests = [each for each in family.contrasts if each.measure == name]
        groups = ((r, _names(results, (t for t in tests if t.reading == r))) for r in _READINGS)
        told = "; ".join(f"{reading}: {names}" for reading, names in groups if names)
        label = results.table.named(name).label
        found.append(f"Against {results.label(family.against)} on {label}: {told}.")
    return found


def _names(results: Results, contrasts: Iterable[Contrast]) -> str:
    return ", ".join(
        f"{results.label(each.variant)} ({points(each.difference, signed=True)})"
        for each in contrasts
    )


def _recovered(results: Results) -> Iterator[str]:
    roles, table = results.roles, results.table
    following = table.measure("instruction_following")
    merged, floor, instruct = (
        table.value(name, following) for name in (roles.merged, roles.base_cpt, roles.instruct)
    )
    if merged is None or floor is None or instruct is None:
        return
    share = recovery(merged=merged, base_cpt=floor, instruct=instruct)
    if share is not None:
        yield (
            f"Of the instruction following that {roles.base_cpt} lacks beside {roles.instruct}, "
            f"{roles.merged} has {percent(share)} (recovery)."
        )


def _repair(results: Results) -> list[str]:
    """Whether CPT of the instruct model forgot anything that could be repaired."""
    roles, following = results.roles, results.table.measure("instruction_following")
    tests = [
        each
        for family in results.families
        for each in family.contrasts
        if (each.variant, each.against) == (roles.instruct_cpt, roles.instruct)
        and following is not None
        and each.measure == following.name
    ]
    if not tests or tests[0].reading == "lost":
        return []
    told = (
        "CPT of the instruct model is not shown to lose instruction following, so this run cannot "
        "show a repair."
    )
    return [told]


def _turns(results: Results) -> list[str]:
    """How much of the drop of instruct_cpt is turns that were not closed."""
    roles, table = results.roles, results.table
    strict = table.value(roles.instruct_cpt, table.measure("instruction_following"))
    relaxed = table.measure("instruction_following", "open")
    reached = table.value(roles.instruct_cpt, relaxed)
    if strict is None or reached is None or reached - strict < _TURN_CLOSING_SHARE:
        return []
    told = (
        f"Part of the low score of {roles.instruct_cpt} is turns that it does not close: when "
        f"closing is not required it reaches {percent(reached)} ({roles.instruct} "
        f"{percent(table.value(roles.instruct, relaxed))})."
    )
    return [told]


def _bits(results: Results) -> Iterator[str]:
    roles, table = results.roles, results.table
    new = table.measure("new_text")
    start, merged, best = (
        table.value(name, new) for name in (roles.instruct, roles.merged, roles.base_cpt)
    )
    if start is None or merged is None or best is None:
        return
    kept = ""
    if start > best:
        share = (start - merged) / (start - best)
        kept = f": {percent(share) if share > 0 else 'none'} of the gain is kept"
    yield (
        f"On held-out new-domain text {roles.merged} needs {merged:.3f} bits per byte, "
        f"{roles.base_cpt} {best:.3f}, {roles.instruct} {start:.3f}{kept}."
    )


def _drift(results: Results, answer: Family | None) -> Iterator[str]:
    drift = results.geometry and results.geometry.drift.get(results.roles.base_cpt)
    if not drift:
        return
    yield f"CPT moved the base weights by {drift:.3f} of their norm (drift)."
    if answer is not None and answer.outcome == "lost":
        yield (
            "The residual was made for the weights before that move: lower the drift (general text "
            "in the corpus, a smaller learning rate) before tuning alpha."
        )


def _limits(results: Results, num_seeds: int) -> list[str]:
    if not results.families:
        return []
    num_families = len(results.families)
    shared = "" if num_families == 1 else f" within each of {num_families} families, which share it"
    seeds = (
        "All of it is over prompts of one seed and does not cover the spread between seeds."
        if num_seeds == 1
        else f"Prompts of {num_seeds} seeds are taken together, and better and lost need the same "
        "sign in each of them; another seed may still differ."
    )
    told = (
        f"The chance of any false better or lost in this report is at most {100 * REPORT_ALPHA:g} "
        f"% (Holm's correction{shared}). Kept: the interval, which holds for its whole family, "
        f"excludes a loss of {points(results.margin)} points or more. {seeds}"
    )
    return [told]
