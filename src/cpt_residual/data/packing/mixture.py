"""Mixture of sources: the one with the largest deficit gives the next row, in exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm


def _require_a_whole(shares: Sequence[Fraction]) -> None:
    assert abs(sum(shares) - 1) <= Fraction(1, 1_000_000), "shares are checked by the configuration"


class Mixture:
    """Interleaves sources evenly by their shares of the tokens.

    The order of the rows does not depend on the budget, so a smaller budget is a prefix of a
    larger one. No source is ever more than one row ahead of its share.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        exact = [Fraction(repr(share)) for share in shares]
        _require_a_whole(exact)
        denominator = lcm(*(share.denominator for share in exact))
        self._weights = [int(share * denominator) for share in exact]
        self._total_weight = sum(self._weights)
        self.tokens = [0] * len(exact)

    def by_deficit(self, *, row_tokens: int) -> list[int]:
        """Sources by how far they would be behind their share after a row of `row_tokens`; those
        with a share of nothing are left out."""
        target = sum(self.tokens) + row_tokens
        deficits = [
            weight * target - self._total_weight * tokens
            for weight, tokens in zip(self._weights, self.tokens, strict=True)
        ]
        wanted = [source for source, weight in enumerate(self._weights) if weight]
        return sorted(wanted, key=lambda source: (-deficits[source], source))

    def needed(self, source: int, *, token_budget: int) -> int:
        """Tokens that always suffice for `source`: its share of the budget, rounded up."""
        return -(-self._weights[source] * token_budget // self._total_weight)

    def add(self, source: int, num_tokens: int) -> None:
        """`source` gave `num_tokens`."""
        self.tokens[source] += num_tokens


@dataclass(frozen=True)
class PhasePlan:
    """A part of the budget, and the share of its tokens that each source has (0: none)."""

    share: float
    shares: tuple[float, ...]


class Curriculum:
    """Mixtures one after the other, each for its part of the token budget.

    A row belongs to the phase that its first token falls into, so a phase is at most a row longer
    than its share of the budget, and the next one shorter. With one phase the order of the rows
    does not depend on the budget; with several it does, because their ends move with it.
    """

    def __init__(self, phases: Sequence[PhasePlan], *, token_budget: int) -> None:
        exact = [Fraction(repr(phase.share)) for phase in phases]
        _require_a_whole(exact)
        ends = [int(sum(exact[: number + 1]) * token_budget) for number in range(len(phases))]
        self._ends = [*ends[:-1], token_budget]
        self._mixtures = [Mixture(phase.shares) for phase in phases]
        self._begins = [0] * len(phases)  # where phases began, as far as they have
        self._number = 0
        self.num_tokens = 0
        self.num_rows = [0] * len(phases)
        self._skip_what_is_over()

    @property
    def tokens(self) -> list[list[int]]:
        """Tokens given by phase and source."""
        return [mixture.tokens for mixture in self._mixtures]

    def by_deficit(self, *, row_tokens: int) -> list[int]:
        """Who should give the next row, by urgency."""
        return self._mixtures[self._number].by_deficit(row_tokens=row_tokens)

    def still_needs(self, source: int) -> bool:
        """Whether `source` has given less than its share of the phase, so that it may not end."""
        mixture = self._mixtures[self._number]
        return mixture.tokens[source] < mixture.needed(source, token_budget=self._length())

    def needed(self, source: int) -> int:
        """Tokens that suffice for `source`: given before, and its share of this phase and later."""
        later = zip(
            self._mixtures[self._number + 1 :],
            self._ends[self._number :],
            self._ends[self._number + 1 :],
            strict=False,
        )
        return (
            sum(mixture.tokens[source] for mixture in self._mixtures[: self._number])
            + self._mixtures[self._number].needed(source, token_budget=self._length())
            + sum(mixture.needed(source, token_budget=end - begin) for mixture, begin, end in later)
        )

    def add(self, source: int, num_tokens: int) -> None:
        """`source` gave a row of `num_tokens`."""
        self._mixtures[self._number].add(source, num_tokens)
        self.num_rows[self._number] += 1
        self.num_tokens += num_tokens
        self._skip_what_is_over()

    def _length(self) -> int:
        """Tokens of this phase, from where it really began."""
        return self._ends[self._number] - self._begins[self._number]

    def _skip_what_is_over(self) -> None:
        while self._number + 1 < len(self._ends) and self.num_tokens >= self._ends[self._number]:
            self._number += 1
            self._begins[self._number] = self.num_tokens
