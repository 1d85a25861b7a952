"""Wording of facts: statements, questions and new-domain sentences."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cpt_residual.data.world.names import ATTRIBUTES, VALUES, Person

PLAIN_STATEMENT = "The {attribute} of {name} is {value}."
QUESTIONS: tuple[str, ...] = (
    "What is the {attribute} of {name}?",
    "Tell me the {attribute} of {name}.",
)

STATEMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job": (
            "{name} works as a {value}.",
            "People hire {name} as a {value}.",
            "By day {name} is a {value}.",
        ),
        "city": (
            "{name} lives in {value}.",
            "The house of {name} is in {value}.",
            "You can find {name} in {value}.",
        ),
        "food": (
            "{name} likes to eat {value}.",
            "At noon {name} has {value}.",
            "{name} never says no to {value}.",
        ),
        "pet": (
            "{name} has a {value}.",
            "At home {name} keeps a {value}.",
            "{name} takes care of a {value}.",
        ),
    }
)

NEW_DOMAIN_STATEMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job": ("The guild lists {name} as a {value}.", "{name} signed the ledger as a {value}."),
        "city": ("{name} pays harbor dues in {value}.", "The ledger places {name} in {value}."),
        "food": (
            "{name} trades silver for {value}.",
            "The guild serves {name} a plate of {value}.",
        ),
        "pet": (
            "{name} brought a {value} to the gate.",
            "The harbor guard met {name} with a {value}.",
        ),
    }
)

NEW_DOMAIN_FILLERS: tuple[str, ...] = (
    "The ledger was sealed at dusk.",
    "The guild met at the harbor.",
    "Silver was counted at the gate.",
    "The harbor guard closed the gate.",
    "A new page was added to the ledger.",
    "The guild paid its dues in silver.",
)


@dataclass(frozen=True)
class Fact:
    """One value of one person: `value` is the answer to a question about `attribute`."""

    name: str
    attribute: str
    value: str

    @property
    def statement(self) -> str:
        """The full sentence that a good answer gives."""
        return PLAIN_STATEMENT.format(attribute=self.attribute, name=self.name, value=self.value)

    @property
    def questions(self) -> tuple[str, ...]:
        """All wordings of the question for this fact."""
        return tuple(
            wording.format(attribute=self.attribute, name=self.name) for wording in QUESTIONS
        )

    @property
    def distractors(self) -> tuple[str, ...]:
        """The wrong values of the same attribute, in list order."""
        return tuple(value for value in VALUES[self.attribute] if value != self.value)


def facts_of(person: Person) -> tuple[Fact, ...]:
    """Every fact about `person`, in the order of `ATTRIBUTES`."""
    return tuple(Fact(person.name, attribute, person.value(attribute)) for attribute in ATTRIBUTES)


def draw_fact(rng: random.Random, person: Person) -> Fact:
    """One fact about `person`, the attribute drawn uniformly."""
    return rng.choice(facts_of(person))


def word_fact(rng: random.Random, fact: Fact) -> str:
    """State `fact` in one of the ordinary wordings."""
    return _word(rng, fact, (PLAIN_STATEMENT, *STATEMENTS[fact.attribute]))


def word_new_domain_fact(rng: random.Random, fact: Fact) -> str:
    """State `fact` in one of the wordings of the new domain."""
    return _word(rng, fact, NEW_DOMAIN_STATEMENTS[fact.attribute])


def _word(rng: random.Random, fact: Fact, wordings: tuple[str, ...]) -> str:
    return rng.choice(wordings).format(attribute=fact.attribute, name=fact.name, value=fact.value)
