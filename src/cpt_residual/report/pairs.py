"""Variants compared prompt by prompt: which, and with what result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cpt_residual.evaluation.results import Sample
from cpt_residual.evaluation.statistics import compare_paired, paired_scores
from cpt_residual.report.facts import Difference, PromptScores, RoleNames, Variant
from cpt_residual.report.measures import MeasureKey, Scores

_PAIRED_MEASURES: tuple[MeasureKey, ...] = (
    "strict",
    "open",
    "new_facts",
    "obeyed_and_right",
    "cloze",
)


def rivals(variants: Iterable[Variant]) -> tuple[str, ...]:
    """Other routes to a model that knows both: instruction data mixed in, or tuning afterwards."""
    return tuple(v.name for v in variants if v.kind in ("replay", "sft"))


def paired_variants(roles: RoleNames, variants: Iterable[Variant]) -> tuple[str, ...]:
    """All variants that appear in a paired test."""
    names = [roles.instruct, roles.instruct_cpt, roles.merged, *rivals(variants)]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def key_pairs(
    key: MeasureKey, roles: RoleNames, variants: Iterable[Variant]
) -> tuple[tuple[str, str], ...]:
    """(first, second) of every test of the difference first - second."""
    following = key in ("strict", "open")
    pairs: list[tuple[str, str | None]] = []
    if following:
        pairs += [(roles.instruct, roles.instruct_cpt), (roles.instruct, roles.merged)]
    else:
        pairs.append((roles.merged, roles.instruct))
    pairs.append((roles.merged, roles.instruct_cpt))
    pairs += [(roles.merged, name) for name in rivals(variants) if key != "open"]
    return tuple((first, second) for first, second in pairs if second is not None)


def paired_sources(scores: Scores) -> dict[MeasureKey, tuple[str, str]]:
    """(task, metric) of every measure that is tested prompt by prompt."""
    return {key: scores.sources[key] for key in _PAIRED_MEASURES if key in scores.sources}


def paired_tests(
    samples: Mapping[str, Sequence[Sample]],
    sources: Mapping[MeasureKey, tuple[str, str]],
    roles: RoleNames,
    variants: Sequence[Variant],
) -> tuple[Difference, ...]:
    """Tests of the key pairs among the variants that have `samples`."""
    found: list[Difference] = []
    for key, (task, metric) in sources.items():
        for first, second in key_pairs(key, roles, variants):
            if first in samples and second in samples:
                scores = paired_scores(samples[first], samples[second], task=task, metric=metric)
                if scores[0]:
                    found.append(paired_difference((first, second), key, scores))
    return tuple(found)


def paired_difference(
    names: tuple[str, str], measure: str, scores: tuple[Sequence[float], Sequence[float]]
) -> Difference:
    """The paired test of two variants; `scores`: theirs on the same prompts, in the same order."""
    test = compare_paired(*scores)
    return Difference(*names, measure, test.difference, test.low, test.high, test.p_value, test.n)


def prompt_scores(
    samples: Mapping[str, Iterable[Sample]], measure: str, task: str, metric: str
) -> PromptScores:
    """Per-prompt values of one measure, of every variant that was asked."""
    table: dict[str, dict[str, float]] = {}
    for name, own in samples.items():
        for sample in own:
            value = sample.metrics.get(metric)
            if sample.task == task and isinstance(value, int | float):
                prompt = f"{sample.doc_id}:{sample.prompt_sha256[:12]}"
                table.setdefault(prompt, {})[name] = float(value)
    return PromptScores(measure, task, metric, table)
