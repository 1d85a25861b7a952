"""Distributions of lengths: exact quantiles, and one bin for each factor of two."""

from __future__ import annotations

from collections import Counter
from math import ceil

import numpy as np
import numpy.typing as npt

from cpt_residual.base_model import Frozen


class LengthBin(Frozen):
    """`count` documents of `first` to `last` units, both included; `total` units in all."""

    first: int
    last: int
    count: int
    total: int


class LengthSummary(Frozen):
    """Lengths in tokens or characters. The quantiles are lengths that occur (lower ranks); bins
    begin at powers of two, from the bin of the shortest to that of the longest."""

    count: int
    total: int
    shortest: int
    median: int
    mean: float
    p90: int
    p99: int
    longest: int
    bins: tuple[LengthBin, ...]


def summary_of(counts: Counter[int]) -> LengthSummary | None:
    """The summary of how often each length was met; None for nothing. Lengths that sum up to N have
    at most sqrt(2 N) different values, so that `counts` stays small: 32,000 for 500M tokens."""
    if not counts:
        return None
    values = np.array(sorted(counts), dtype=np.int64)
    counted = np.array([counts[value] for value in values.tolist()], dtype=np.int64)
    ranks = np.cumsum(counted)
    count, total = int(ranks[-1]), int(values @ counted)

    def quantile(share: float) -> int:
        return int(values[np.searchsorted(ranks, ceil(share * count))])

    return LengthSummary(
        count=count,
        total=total,
        shortest=int(values[0]),
        median=quantile(0.5),
        mean=round(total / count, 2),
        p90=quantile(0.9),
        p99=quantile(0.99),
        longest=int(values[-1]),
        bins=_bins(values, counted),
    )


def _bins(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> tuple[LengthBin, ...]:
    octaves = [value.bit_length() for value in values.tolist()]
    firsts = [(1 << octave) >> 1 for octave in range(octaves[0], octaves[-1] + 2)]
    bounds = np.searchsorted(values, firsts)
    parts = [slice(bounds[at], bounds[at + 1]) for at in range(len(firsts) - 1)]
    return tuple(
        LengthBin(
            first=first,
            last=(first << 1) - 1 if first else 0,
            count=int(counts[part].sum()),
            total=int(values[part] @ counts[part]),
        )
        for first, part in zip(firsts, parts, strict=False)
    )
