"""From the values of all documents to one score of our own tasks. lm-eval calls these by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cpt_residual.config.suite_tasks import Aggregate


def mean_of_checks(items: Sequence[Sequence[bool]]) -> float:
    """Mean over all checks of all prompts (IFEval's instruction level)."""
    flat = [each for item in items for each in item]
    return sum(flat) / len(flat) if flat else math.nan


def bits_per_byte(items: Sequence[tuple[float, int]]) -> float:
    """Bits needed per byte of the documents."""
    return bits_of_nats(_nats_per_unit(items))


def perplexity(items: Sequence[tuple[float, int]]) -> float:
    """exp of the mean negative log likelihood per token or word."""
    return exp_of_nats(_nats_per_unit(items))


def bits_of_nats(nats: float) -> float:
    """1 nat is 1 / ln 2 bits."""
    return nats / math.log(2)


def exp_of_nats(nats: float) -> float:
    """exp, infinite where a float ends."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _nats_per_unit(items: Sequence[tuple[float, int]]) -> float:
    log_likelihood, units = math.fsum(pair[0] for pair in items), sum(pair[1] for pair in items)
    return -log_likelihood / units if units else math.nan


TRANSFORMS: Mapping[Aggregate, Callable[[float], float]] = {
    "bits_per_byte": bits_of_nats,
    "perplexity": exp_of_nats,
}
"""From nats per unit to the score."""
