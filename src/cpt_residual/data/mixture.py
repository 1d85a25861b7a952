"""Which source gives the next row: largest deficit first, in exact integer arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

from cpt_residual.errors import ConfigError

__all__ = ["Mixture"]


class Mixture:
    """Interleaves sources evenly by their shares of the tokens.

    The order of the rows does not depend on the budget, so a smaller budget is a prefix of a
    larger one. No source is ever more than one row ahead of its share.
    """

    def __init__(self, shares: Sequence[float], *, names: Sequence[str]) -> None:
        exact = [Fraction(repr(share)) for share in shares]
        if abs(sum(exact) - 1) > Fraction(1, 1_000_000):
            raise ConfigError(
                f"the shares of a pack's sources add up to {float(sum(exact)):g}, not to 1",
                problems=[
                    f"{name}: share {share:g}" for name, share in zip(names, shares, strict=True)
                ],
                remedy="A share is the source's part of the token budget.",
            )
        denominator = lcm(*(share.denominator for share in exact))
        self._weights = [int(share * denominator) for share in exact]
        self._total_weight = sum(self._weights)
        self.tokens = [0] * len(exact)

    def by_deficit(self, *, row_tokens: int) -> list[int]:
        """Sources by how far they would be behind their share after a row of `row_tokens`."""
        target = sum(self.tokens) + row_tokens
        deficits = [
            weight * target - self._total_weight * tokens
            for weight, tokens in zip(self._weights, self.tokens, strict=True)
        ]
        return sorted(range(len(deficits)), key=lambda source: (-deficits[source], source))

    def needed(self, source: int, *, token_budget: int) -> int:
        """Tokens that always suffice for `source`: its share of the budget, rounded up."""
        return -(-self._weights[source] * token_budget // self._total_weight)

    def add(self, source: int, num_tokens: int) -> None:
        """`source` gave `num_tokens`."""
        self.tokens[source] += num_tokens
