"""DARE: drop elements of the residual at random and scale the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cpt_residual.methods.method import Factors, MergekitMerge, Method, Replaced, WholeTensor

if TYPE_CHECKING:
    from cpt_residual.methods.method import F64


class Dare(Method):
    """DARE (Yu et al. 2024): drop each element of the residual with probability `drop_rate`, scale
    the rest by 1 / (1 - drop_rate). The choice depends on seed, tensor and element alone."""

    kind: Literal["dare"] = "dare"
    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0, description="share to drop")] = 0.5
    seed: Annotated[int, Field(ge=0, lt=2**63, description="which elements")] = 0
    words: ClassVar[str] = "DARE (Yu et al. 2024)"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.03099"

    def for_tensor(self, tensor: WholeTensor) -> Replaced:
        name = tensor.owner

        def kept(start: int, stop: int, read: Callable[[], F64]) -> F64:
            rate, seed = self.drop_rate, self.seed
            return read() * dare_factors(name, start, stop - start, drop_rate=rate, seed=seed)

        return Replaced(kept)

    def mergekit(self, factors: Factors) -> MergekitMerge:
        """The same distribution; mergekit's choice has no seed per element."""
        kept = 1.0 - self.drop_rate
        return MergekitMerge(
            "dare_linear",
            target={"weight": factors.cpt, "density": 1.0},
            instruct={
                "weight": {name: value / kept for name, value in factors.residual.items()},
                "density": kept,
            },
            common={"normalize": False, "rescale": False},  # weight has 1 / (1 - drop_rate) already
            comments=[
                "differs: which elements are dropped is drawn anew in every run (same rate,",
                f"  another choice than seed {self.seed} of cpt_residual)",
            ],
        )


def dare_factors(name: str, start: int, count: int, *, drop_rate: float, seed: int) -> F64:
    """Factors for elements start..start+count of tensor `name`, flat: 0 with probability
    `drop_rate`, else 1 / (1 - drop_rate), so that the expected factor is 1.

    A factor depends on seed, name and the element's index alone: element i has word i of the
    Philox 4x64 stream whose key comes from sha256 of seed and name. It is dropped when that word
    is below drop_rate * 2^64, an exact integer comparison. 0 <= drop_rate < 1.
    """
    import numpy as np

    if drop_rate == 0.0:
        return np.ones(count)
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    first, skipped = divmod(start, 4)  # one step of the counter gives four words
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first)
    words = stream.random_raw(skipped + count)[skipped:]
    dropped = words < np.uint64(int(Fraction(drop_rate) * 2**64))
    return np.where(dropped, 0.0, 1.0 / (1.0 - drop_rate))
