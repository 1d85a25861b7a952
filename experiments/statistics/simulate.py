"""How often a report makes a claim that is false, when all variants are equally good.

    python experiments/statistics/simulate.py --reports 500

Each simulated report has the evaluated variants, families and measures of a shipped experiment.
Prompts differ in difficulty, and every variant answers each prompt right with the same chance, so
that every claim of better or lost is false. "Before" is what reports claimed until this correction
was made: every test on its own, at 5 %, where the 95 % interval agrees with the exact test.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.compose import compose
from cpt_residual.config.contrasts import Kind
from cpt_residual.config.measures import Measure
from cpt_residual.results.contrasts import Family, make_families
from cpt_residual.results.document import kind_of
from cpt_residual.results.outcomes import Outcomes
from cpt_residual.results.paired import compare_paired

_EASE = (1.8, 0.2)
"""Beta distribution of the chance to answer a prompt right: 0.9 on average, and two equal variants
differ on 12 % of the prompts."""


@dataclass(frozen=True)
class Simulated:
    """Shares of the simulated reports. `before`, `after`: with at least one false claim;
    `readings`: of the first contrast of the verdict, whose true loss is 0."""

    reports: int
    tests: int
    before: float
    after: float
    readings: Mapping[str, float]


def simulate(experiment: str, *, num_prompts: int, reports: int, seed: int = 0) -> Simulated:
    """Reports of a shipped experiment on `num_prompts` prompts per measure."""
    declared = compose([f"+experiment={experiment}"])
    names = declared.evaluation.variants
    kinds: dict[str, Kind] = {
        name: kind_of(name, declared.roles, declared.variants) for name in names
    }
    measures = [
        measure
        for key in declared.evaluation.suites
        for measure in declared.suites[key].measures(key)
        if measure.paired and measure.aspect == "headline"
    ]
    assert declared.verdict is not None
    drawn, before, after, tests = random.Random(seed), 0, 0, 0
    readings: Counter[str] = Counter()
    for _ in range(reports):
        outcomes = _equal_variants(names, measures, num_prompts, drawn)
        families = make_families(
            declared.families, kinds, measures, outcomes, margin=declared.verdict.margin
        )
        tests = sum(len(family.contrasts) for family in families)
        before += any(_claims_alone(family, outcomes) for family in families)
        after += any(
            contrast.reading in ("better", "lost")
            for family in families
            for contrast in family.contrasts
        )
        answer = next(each for each in families if each.name == declared.verdict.contrasts)
        readings[answer.contrasts[0].reading] += 1
    shares = {reading: count / reports for reading, count in sorted(readings.items())}
    return Simulated(reports, tests, before / reports, after / reports, shares)


def _equal_variants(
    names: list[str], measures: list[Measure], num_prompts: int, drawn: random.Random
) -> Outcomes:
    values: dict[str, dict[str, dict[str, float]]] = {}
    for measure in measures:
        ease = {f"{i:05d}": drawn.betavariate(*_EASE) for i in range(num_prompts)}
        values[measure.name] = {
            name: {prompt: float(drawn.random() < chance) for prompt, chance in ease.items()}
            for name in names
        }
    return Outcomes(values)


def _claims_alone(family: Family, outcomes: Outcomes) -> bool:
    """Whether any test of the family would be a claim on its own."""
    for contrast in family.contrasts:
        pair = outcomes.pair(contrast.measure, contrast.variant, contrast.against)
        assert pair is not None
        test = compare_paired(*pair)
        if (test.low > 0 or test.high < 0) and test.p_value < 0.05:
            return True
    return False


def table(reports: int) -> str:
    """All shipped cases as a Markdown table."""
    columns = ("experiment", "prompts", "tests", "false claim, each test alone")
    columns += ("false claim, as reported", "no loss: kept", "undecided", "lost or better")
    lines = [f"| {' | '.join(columns)} |", f"|---{'|--:' * (len(columns) - 1)}|"]
    for experiment in ("tiny", "tiny_methods"):
        for num_prompts in (194, 541):
            found = simulate(experiment, num_prompts=num_prompts, reports=reports)
            shares = found.readings
            wrong = shares.get("lost", 0.0) + shares.get("better", 0.0)
            cells = [found.before, found.after, shares.get("kept", 0.0)]
            cells += [shares.get("undecided", 0.0), wrong]
            percents = " | ".join(f"{100 * cell:.1f} %" for cell in cells)
            lines.append(f"| {experiment} | {num_prompts} | {found.tests} | {percents} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=500)
    text = table(parser.parse_args().reports)
    (Path(__file__).parent / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
