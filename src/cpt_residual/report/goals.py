"""The goals set for the tiny experiment, checked on one seed. A missed goal is shown as it is."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_residual.report.facts import RoleNames
from cpt_residual.report.format import MINUS
from cpt_residual.report.measures import Scores


@dataclass(frozen=True)
class Goal:
    """`value` compared with `bound`; `passed` is None when a score is missing."""

    key: str
    statement: str
    value: float | None
    bound: float
    passed: bool | None
    share: bool


def check_goals(scores: Scores, roles: RoleNames) -> tuple[Goal, ...]:
    """Strict instruction following (three goals), new-domain perplexity, new facts."""
    instruct = scores.value(roles.instruct, "strict")
    naive = scores.value(roles.instruct_cpt, "strict")
    merged = scores.value(roles.merged, "strict")
    naive_name = roles.instruct_cpt or "instruct_cpt"
    return (
        _at_least("instruct", f"{roles.instruct} strict ≥ 80", instruct, 0.80),
        _at_least(
            "forgetting",
            f"{roles.instruct} {MINUS} {naive_name} ≥ 30",
            _minus(instruct, naive),
            0.30,
        ),
        _at_most(
            "loss", f"{roles.instruct} {MINUS} {roles.merged} ≤ 15", _minus(instruct, merged), 0.15
        ),
        _ratio_at_most(
            "perplexity",
            f"new-domain perplexity, {roles.merged} / {roles.instruct} ≤ 0.8",
            scores.value(roles.merged, "perplexity_new"),
            scores.value(roles.instruct, "perplexity_new"),
            0.8,
        ),
        _ratio_at_least(
            "new_facts",
            f"new facts, {roles.merged} / {roles.instruct} ≥ 3",
            scores.value(roles.merged, "new_facts"),
            scores.value(roles.instruct, "new_facts"),
            3.0,
        ),
    )


_SLACK = 1e-9  # so that a value that equals the bound in decimal is not failed by binary rounding


def _at_least(key: str, statement: str, value: float | None, bound: float) -> Goal:
    passed = None if value is None else value >= bound - _SLACK
    return Goal(key, statement, value, bound, passed, share=True)


def _at_most(key: str, statement: str, value: float | None, bound: float) -> Goal:
    passed = None if value is None else value <= bound + _SLACK
    return Goal(key, statement, value, bound, passed, share=True)


def _ratio_at_least(
    key: str, statement: str, first: float | None, second: float | None, bound: float
) -> Goal:
    """first >= bound * second; the ratio itself is not shown where `second` is zero."""
    if first is None or second is None:
        return Goal(key, statement, None, bound, None, share=False)
    ratio = first / second if second else None
    return Goal(key, statement, ratio, bound, first >= bound * second - _SLACK, share=False)


def _ratio_at_most(
    key: str, statement: str, first: float | None, second: float | None, bound: float
) -> Goal:
    """first <= bound * second; the ratio itself is not shown where `second` is zero."""
    if first is None or second is None:
        return Goal(key, statement, None, bound, None, share=False)
    ratio = first / second if second else None
    return Goal(key, statement, ratio, bound, first <= bound * second + _SLACK, share=False)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
