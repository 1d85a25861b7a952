"""Contrasts: paired tests in declared families, corrected for their number, and their reading.

A report makes a false claim of better or lost with a chance of at most `REPORT_ALPHA`: the level is
shared equally by its families, and Holm's step-down procedure controls each of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from cpt_residual.base_model import Frozen
from cpt_residual.config.contrasts import ContrastFamily, Kind
from cpt_residual.config.measures import Measure
from cpt_residual.results.outcomes import Outcomes
from cpt_residual.results.paired import (
    PairedComparison,
    compare_paired,
    detectable_difference,
    holm,
)

REPORT_ALPHA = 0.05

Reading = Literal["kept", "lost", "undecided", "better"]


class Contrast(Frozen):
    """`variant` - `against` on one measure over the same `n` prompts.

    low, high: interval of the difference that holds for all contrasts of the family together
    (Bonferroni); p_value: one test alone; p_holm: corrected over the family; won, lost: prompts on
    which the variant is better, worse; detectable: the difference that n prompts show with 80 %
    power at the family's strictest level, given how often these two differ.
    """

    variant: str
    against: str
    measure: str
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    n: int
    won: int
    lost: int
    detectable: float
    reading: Reading


class Family(Frozen):
    """The contrasts of one declared family. `alpha`: its part of the report's level."""

    name: str
    question: str | None
    against: str
    alpha: float
    contrasts: tuple[Contrast, ...]

    @property
    def outcome(self) -> Reading:
        """Of one contrast its reading; of several: kept or lost if all variants are, better if some
        variant is better on a measure and lost on none, else undecided."""
        readings = [self.readings(name) for name in self.variants]
        if any("better" in each and "lost" not in each for each in readings):
            return "better"
        if all("lost" in each for each in readings):
            return "lost"
        return "kept" if all(set(each) == {"kept"} for each in readings) else "undecided"

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.variant for each in self.contrasts))

    def readings(self, variant: str) -> list[Reading]:
        return [each.reading for each in self.contrasts if each.variant == variant]


def make_families(
    declared: Mapping[str, ContrastFamily],
    kinds: Mapping[str, Kind],
    measures: Sequence[Measure],
    outcomes: Outcomes,
    *,
    margin: float,
) -> tuple[Family, ...]:
    """All declared families that have anything to test. `kinds`: evaluated variant -> its kind."""
    tests = {
        key: [
            (variant, measure)
            for measure in chosen_measures(family, measures)
            for variant in family.chosen(kinds)
            if outcomes.pair(measure.name, variant, family.against) is not None
        ]
        for key, family in declared.items()
        if family.against in kinds
    }
    made = {key: found for key, found in tests.items() if found}
    return tuple(
        Family(
            name=key,
            question=declared[key].question,
            against=declared[key].against,
            alpha=REPORT_ALPHA / len(made),
            contrasts=_contrasts(
                found,
                declared[key].against,
                outcomes,
                alpha=REPORT_ALPHA / len(made),
                margin=margin,
            ),
        )
        for key, found in made.items()
    )


def chosen_measures(family: ContrastFamily, measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """The paired measures that a family tests."""
    every, named = family.measures == "all", frozenset(family.measures)
    return tuple(
        measure
        for measure in measures
        if measure.paired
        and (
            measure.is_named(named)
            or (measure.aspect == "headline" and (every or measure.role in named))
        )
    )


def _contrasts(
    tests: Sequence[tuple[str, Measure]],
    against: str,
    outcomes: Outcomes,
    *,
    alpha: float,
    margin: float,
) -> tuple[Contrast, ...]:
    strictest = alpha / len(tests)
    pairs = [outcomes.pair(measure.name, variant, against) for variant, measure in tests]
    scores = [pair for pair in pairs if pair is not None]
    compared = [compare_paired(*pair, level=1 - strictest) for pair in scores]
    adjusted = holm([each.p_value for each in compared])
    found: list[Contrast] = []
    for place, (variant, measure) in enumerate(tests):
        test, reference = compared[place], statistics.fmean(scores[place][1])
        won, lost = (test.won, test.lost)[:: 1 if measure.higher_is_better else -1]
        shown = adjusted[place] < alpha
        found.append(
            Contrast(
                variant=variant,
                against=against,
                measure=measure.name,
                difference=test.difference,
                low=test.low,
                high=test.high,
                p_value=test.p_value,
                p_holm=adjusted[place],
                n=test.n,
                won=won,
                lost=lost,
                detectable=detectable_difference(
                    test.n, alpha=strictest, discordant=(won + lost) / test.n
                ),
                reading=_reading(test, measure, shown=shown, margin=margin, reference=reference),
            )
        )
    return tuple(found)


def _reading(
    test: PairedComparison, measure: Measure, *, shown: bool, margin: float, reference: float
) -> Reading:
    """better: shown above 0; kept: the interval lies above -margin, where the reference itself has
    more than twice the margin to lose; lost: shown below 0, and not kept; else undecided."""
    sign = 1 if measure.higher_is_better else -1
    gain, worst = sign * test.difference, test.low if sign > 0 else -test.high
    if shown and gain > 0:
        return "better"
    if worst > -margin and reference - (measure.chance or 0.0) > 2 * margin:
        return "kept"
    return "lost" if shown and gain < 0 else "undecided"
