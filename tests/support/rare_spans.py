"""Made-up records: each names one mill and its keeper, and no two share a name or a number."""

from __future__ import annotations

import random
from collections.abc import Callable

_STARTS = ("Ba", "Do", "Fe", "Ga", "Ki", "Lo", "Mu", "Ri", "Su", "Ta", "Ve", "Zo")
_ENDS = ("lan", "ren", "mik", "dor", "sel", "tup", "gan", "vir", "kes", "pon", "bal", "rud")


def _word(rng: random.Random) -> str:
    return rng.choice(_STARTS) + rng.choice(_ENDS) + rng.choice(_ENDS)


def records(num: int, *, seed: int, word: Callable[[random.Random], str] = _word) -> list[str]:
    """`num` documents about strangers; different seeds of one test share no name (checked)."""
    rng = random.Random(seed)
    return [_record(rng, word) for _ in range(num)]


def _record(rng: random.Random, word: Callable[[random.Random], str]) -> str:
    mill, first, last = (word(rng) for _ in range(3))
    return (
        f"the record of the mill called {mill.lower()} says that the keeper there was "
        f"{first} {last} and nobody else."
    )
