"""Which variants are compared prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable

from cpt_residual.report.facts import RoleNames, Variant
from cpt_residual.report.measures import MeasureKey


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
