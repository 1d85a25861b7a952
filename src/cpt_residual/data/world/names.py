"""The people of the procedural world, including held-out ones that no text mentions.

Old and new people share first and last names; only the combination is new. A name made of
one first and one last name is therefore two familiar words, never an unseen one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FIRST_NAMES: tuple[str, ...] = tuple(
    start + end
    for start in ("Ba", "Do", "Fe", "Ga", "Ki", "Lo", "Mu", "Ri")
    for end in ("la", "ren", "mi", "do")
)
LAST_NAMES: tuple[str, ...] = tuple(
    start + end
    for start in ("Tor", "Ves", "Pel", "Har", "Nim", "Sol", "Cas", "Wen")
    for end in ("ka", "by", "ton", "er")
)

VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job": (
            *("baker", "pilot", "nurse", "judge", "miner", "tailor", "potter", "sailor"),
            *("clerk", "porter", "coach", "poet", "farmer", "dancer", "monk", "smith"),
        ),
        "city": (
            *("Paris", "Rome", "Lima", "Cairo", "Delhi", "Tokyo", "Berlin", "Madrid"),
            *("Dublin", "Havana", "Kyoto", "Milan", "Boston", "Vienna", "Bogota", "Nairobi"),
        ),
        "food": (
            *("rice", "soup", "bread", "cheese", "pasta", "curry", "salad", "beans"),
            *("fish", "plums", "honey", "corn", "figs", "tofu", "cake", "pears"),
        ),
        "pet": (
            *("dog", "cat", "horse", "parrot", "rabbit", "turtle", "goat", "snake"),
            *("lizard", "mouse", "duck", "frog", "hen", "pony", "crab", "toad"),
        ),
    }
)
ATTRIBUTES: tuple[str, ...] = tuple(VALUES)


@dataclass(frozen=True)
class Person:
    """One name and one value for each attribute, in the order of `ATTRIBUTES`."""

    name: str
    values: tuple[str, ...]

    def value(self, attribute: str) -> str:
        """What is true of this person for `attribute`."""
        return self.values[ATTRIBUTES.index(attribute)]


@dataclass(frozen=True)
class Cast:
    """Everybody with facts of their own: taught and held-out old people, and new people."""

    taught: tuple[Person, ...]
    heldout: tuple[Person, ...]
    new: tuple[Person, ...]

    @property
    def old(self) -> tuple[Person, ...]:
        """The people of the general corpus: taught ones first, then held-out ones."""
        return self.taught + self.heldout

    @property
    def names(self) -> frozenset[str]:
        """Every name with facts behind it; strangers are drawn outside this set."""
        return frozenset(person.name for person in self.old + self.new)


def draw_cast(rng: random.Random, *, num_taught: int, num_heldout: int, num_new: int) -> Cast:
    """Draw disjoint groups of people, all names distinct, every value uniform."""
    names = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]
    chosen = rng.sample(names, num_taught + num_heldout + num_new)
    people = tuple(Person(name, _draw_values(rng)) for name in chosen)
    end_old = num_taught + num_heldout
    return Cast(
        taught=people[:num_taught], heldout=people[num_taught:end_old], new=people[end_old:]
    )


def draw_stranger(rng: random.Random, taken: frozenset[str]) -> Person:
    """Draw a person of no importance, whose name is not in `taken`, with random values."""
    while True:
        name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
        if name not in taken:
            return Person(name, _draw_values(rng))


def _draw_values(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.choice(values) for values in VALUES.values())
