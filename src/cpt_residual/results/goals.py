"""Goals that an experiment set itself, checked on one seed. A missed goal is shown as it is."""

from __future__ import annotations

from cpt_residual.base_model import Frozen
from cpt_residual.config.schema import Goals, Roles
from cpt_residual.results.table import ResultTable

MINUS = "\N{MINUS SIGN}"
_SLACK = 1e-9  # so that a value that equals the bound in decimal is not failed by binary rounding


class Goal(Frozen):
    """`value` compared with `bound`; `passed` is None when a score is missing. `share`: shown in
    points, else as a ratio."""

    key: str
    statement: str
    value: float | None
    bound: float
    passed: bool | None
    share: bool


def check_goals(goals: Goals | None, table: ResultTable, roles: Roles) -> tuple[Goal, ...]:
    """Strict instruction following (three goals), new-domain perplexity, new facts; none without
    `goals`."""
    if goals is None:
        return ()
    following, facts = table.measure("instruction_following"), table.measure("new_knowledge")
    perplexity = table.measure("new_text", "perplexity")
    instruct, naive, merged = (
        table.value(name, following) for name in (roles.instruct, roles.instruct_cpt, roles.merged)
    )
    naive_name, ratio = roles.instruct_cpt or "instruct_cpt", f"{roles.merged} / {roles.instruct}"
    return (
        _points(
            "instruct", f"{roles.instruct} strict", instruct, goals.instruct_at_least, least=True
        ),
        _points(
            "forgetting",
            f"{roles.instruct} {MINUS} {naive_name}",
            _minus(instruct, naive),
            goals.forgetting_at_least,
            least=True,
        ),
        _points(
            "loss",
            f"{roles.instruct} {MINUS} {roles.merged}",
            _minus(instruct, merged),
            goals.loss_at_most,
            least=False,
        ),
        _ratio(
            "perplexity",
            f"new-domain perplexity, {ratio}",
            (table.value(roles.merged, perplexity), table.value(roles.instruct, perplexity)),
            goals.perplexity_ratio_at_most,
            least=False,
        ),
        _ratio(
            "new_facts",
            f"new facts, {ratio}",
            (table.value(roles.merged, facts), table.value(roles.instruct, facts)),
            goals.new_facts_ratio_at_least,
            least=True,
        ),
    )


def _points(key: str, what: str, value: float | None, bound: float, *, least: bool) -> Goal:
    passed = None
    if value is not None:
        passed = value >= bound - _SLACK if least else value <= bound + _SLACK
    statement = f"{what} {'≥' if least else '≤'} {100 * bound:g}"
    return Goal(key=key, statement=statement, value=value, bound=bound, passed=passed, share=True)


def _ratio(
    key: str, what: str, scores: tuple[float | None, float | None], bound: float, *, least: bool
) -> Goal:
    """first against bound * second; the ratio itself is not shown where `second` is zero. Twice
    nothing is nothing: a least ratio needs a first above 0."""
    first, second = scores
    value = passed = None
    if first is not None and second is not None:
        value = first / second if second else None
        passed = (
            first > 0 and first >= bound * second - _SLACK
            if least
            else first <= bound * second + _SLACK
        )
    statement = f"{what} {'≥' if least else '≤'} {bound:g}"
    return Goal(key=key, statement=statement, value=value, bound=bound, passed=passed, share=False)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
