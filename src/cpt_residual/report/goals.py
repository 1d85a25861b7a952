"""Goals that an experiment set itself, checked on one seed. A missed goal is shown as it is."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_residual.config.schema import Goals
from cpt_residual.report.facts import RoleNames
from cpt_residual.report.format import MINUS, MISSING
from cpt_residual.report.measures import Scores


@dataclass(frozen=True)
class Goal:
    """`value` compared with `bound`; `passed` is None when a score is missing. `share`: shown in
    points, else as a ratio."""

    key: str
    statement: str
    value: float | None
    bound: float
    passed: bool | None
    share: bool

    @property
    def value_text(self) -> str:
        return MISSING if self.value is None else goal_number(self.value, share=self.share)

    @property
    def mark(self) -> str:
        return MISSING if self.passed is None else "yes" if self.passed else "NO"


def goal_number(value: float, *, share: bool) -> str:
    """Points with one decimal for shares, else two decimals."""
    return f"{100 * value:.1f}" if share else f"{value:.2f}"


def check_goals(goals: Goals | None, scores: Scores, roles: RoleNames) -> tuple[Goal, ...]:
    """Strict instruction following (three goals), new-domain perplexity, new facts; none without
    `goals`."""
    if goals is None:
        return ()
    instruct = scores.value(roles.instruct, "strict")
    naive = scores.value(roles.instruct_cpt, "strict")
    merged = scores.value(roles.merged, "strict")
    naive_name = roles.instruct_cpt or "instruct_cpt"
    return (
        _at_least(
            "instruct",
            f"{roles.instruct} strict ≥ {100 * goals.instruct_at_least:g}",
            instruct,
            goals.instruct_at_least,
        ),
        _at_least(
            "forgetting",
            f"{roles.instruct} {MINUS} {naive_name} ≥ {100 * goals.forgetting_at_least:g}",
            _minus(instruct, naive),
            goals.forgetting_at_least,
        ),
        _at_most(
            "loss",
            f"{roles.instruct} {MINUS} {roles.merged} ≤ {100 * goals.loss_at_most:g}",
            _minus(instruct, merged),
            goals.loss_at_most,
        ),
        _ratio_at_most(
            "perplexity",
            f"new-domain perplexity, {roles.merged} / {roles.instruct} "
            f"≤ {goals.perplexity_ratio_at_most:g}",
            scores.value(roles.merged, "perplexity_new"),
            scores.value(roles.instruct, "perplexity_new"),
            goals.perplexity_ratio_at_most,
        ),
        _ratio_at_least(
            "new_facts",
            f"new facts, {roles.merged} / {roles.instruct} ≥ {goals.new_facts_ratio_at_least:g}",
            scores.value(roles.merged, "new_facts"),
            scores.value(roles.instruct, "new_facts"),
            goals.new_facts_ratio_at_least,
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
    """first >= bound * second and first > 0; the ratio itself is not shown where `second` is 0."""
    if first is None or second is None:
        return Goal(key, statement, None, bound, None, share=False)
    ratio = first / second if second else None
    passed = first > 0 and first >= bound * second - _SLACK
    return Goal(key, statement, ratio, bound, passed, share=False)


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
