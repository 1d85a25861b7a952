"""How long documents are: exact counts, in memory that grows with the root of the data only."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import numpy as np
import numpy.typing as npt

from cpt_residual.base_model import Frozen

BINS_PER_OCTAVE = 4


class LengthBin(Frozen):
    """`count` documents of `first` to `last` units, both included; `total` units in all."""

    first: int
    last: int
    count: int
    total: int


class LengthSummary(Frozen):
    """Lengths in tokens or characters. bins: four for each factor of two, from the shortest to the
    longest; every power of two begins one. The quantiles are lengths that occur (lower ranks)."""

    count: int
    total: int
    shortest: int
    median: int
    mean: float
    p90: int
    p99: int
    longest: int
    bins: tuple[LengthBin, ...]


class Lengths:
    """Counts of every length met. Lengths that sum up to N have at most sqrt(2 N) different values:
    some 32,000 for 500M tokens."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, length: int) -> None:
        """One document of `length`."""
        self._counts[length] = self._counts.get(length, 0) + 1

    def add_all(self, lengths: npt.NDArray[np.int64]) -> None:
        """A document for each of `lengths`."""
        values, counts = np.unique(lengths, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._counts[value] = self._counts.get(value, 0) + count

    def summary(self) -> LengthSummary | None:
        """What was met; None for nothing."""
        if not self._counts:
            return None
        values = np.array(sorted(self._counts), dtype=np.int64)
        counts = np.array([self._counts[value] for value in values.tolist()], dtype=np.int64)
        ranks = np.cumsum(counts)
        count, total = int(ranks[-1]), int(values @ counts)

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
            bins=tuple(_bins(values, counts)),
        )


def _bins(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Iterable[LengthBin]:
    edges = [
        0,
        *sorted({ceil(2 ** (k / BINS_PER_OCTAVE)) for k in range(_edges_to(int(values[-1])))}),
    ]
    splits = np.searchsorted(values, edges)
    filled = np.flatnonzero(np.diff(splits)).tolist()
    for at in range(filled[0], filled[-1] + 1):
        inside = slice(splits[at], splits[at + 1])
        yield LengthBin(
            first=edges[at],
            last=edges[at + 1] - 1,
            count=int(counts[inside].sum()),
            total=int(values[inside] @ counts[inside]),
        )


def _edges_to(longest: int) -> int:
    """How many edges it takes to lie above the longest."""
    return (longest.bit_length() + 1) * BINS_PER_OCTAVE + 1
