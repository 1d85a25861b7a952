"""What a planned evaluation can show: the smallest differences that its prompts detect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cpt_residual.config.contrasts import Kind
from cpt_residual.config.measures import Measure
from cpt_residual.config.schema import Experiment
from cpt_residual.data.world.write import probe_counts
from cpt_residual.results.contrasts import REPORT_ALPHA, chosen_measures
from cpt_residual.results.document import kind_of
from cpt_residual.results.paired import detectable_difference
from cpt_residual.stages.world import World

_DISCORDANT = 0.1
"""Assumed share of prompts on which two variants differ; the report uses what was measured."""


def detectable_lines(experiment: Experiment) -> Iterator[str]:
    """One line per suite with paired measures that a declared family tests."""
    levels, counts = _levels(experiment), _probe_counts(experiment)
    for key in experiment.evaluation.suites:
        measures = [m for m in experiment.suites[key].measures(key) if m.name in levels]
        told = [_measure(m, counts.get(m.task, m.num_prompts), levels[m.name]) for m in measures]
        if told:
            yield f"suite {key} can show differences of {', '.join(told)} points or more"
    if levels:
        yield (
            f"(80 % power, at the levels that the correction leaves, where {100 * _DISCORDANT:g} % "
            "of the prompts differ between two variants)"
        )


def _measure(measure: Measure, num_prompts: int | None, alpha: float) -> str:
    if num_prompts is None:
        return f"{measure.short} ? (number of prompts not known)"
    found = 100 * detectable_difference(num_prompts, alpha=alpha, discordant=_DISCORDANT)
    return f"{measure.short} {found:.1f} ({num_prompts:,} prompts)"


def _levels(experiment: Experiment) -> Mapping[str, float]:
    """Measure -> the strictest level at which a declared family tests it."""
    kinds: dict[str, Kind] = {
        name: kind_of(name, experiment.roles, experiment.variants)
        for name in experiment.evaluation.variants
    }
    declared = [
        measure
        for key in experiment.evaluation.suites
        for measure in experiment.suites[key].measures(key)
    ]
    families = [
        (len(family.chosen(kinds)), chosen_measures(family, declared))
        for family in experiment.families.values()
        if family.against in kinds
    ]
    made = [(variants, measures) for variants, measures in families if variants and measures]
    return {
        measure.name: REPORT_ALPHA
        / len(made)
        / max(variants * len(tested) for variants, tested in made if measure in tested)
        for _, measures in made
        for measure in measures
    }


def _probe_counts(experiment: Experiment) -> Mapping[str, int]:
    if experiment.world is None:
        return {}
    world = World(world=experiment.world, seed=experiment.seed)
    return probe_counts(seed=experiment.seed, size=world.size)
