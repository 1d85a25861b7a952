"""Raw text of the world: the general corpus, the new domain, and the tokenizer's training text.

The base model must own the skills that the instruction data asks for (copying, changing case,
turning a question into a statement) before it is instruction-tuned; otherwise tuning builds
circuits that cannot be added to a base that has moved on. Hence the copy exercises and the
question lists in the general corpus. It also holds rare sentences of the new domain about
strangers: the new domain brings new facts and a new distribution, no new words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence

from cpt_residual.data.world.facts import (
    NEW_DOMAIN_FILLERS,
    Fact,
    draw_fact,
    facts_of,
    word_fact,
    word_new_domain_fact,
)
from cpt_residual.data.world.instructions import WORDS
from cpt_residual.data.world.names import Person, draw_stranger

FILLERS: tuple[str, ...] = (
    "The day was warm.",
    "It rained at night.",
    "Nobody saw it.",
    "The road is long.",
    "They met at noon.",
    "The house is old.",
    "All was well.",
    "It was late.",
)

# Kinds of general document and their shares, in percent.
GENERAL_SHARES: tuple[tuple[str, int], ...] = (
    ("paragraph", 41),
    ("questions", 12),
    ("forms", 9),
    ("copies", 20),
    ("cased", 8),
    ("story", 4),
    ("words", 3),
    ("new_domain_style", 3),
)


def general_document(rng: random.Random, people: Sequence[Person], taken: frozenset[str]) -> str:
    """One document about `people` and about strangers whose names are outside `taken`."""
    kinds, shares = zip(*GENERAL_SHARES, strict=True)
    kind = rng.choices(kinds, shares)[0]
    person = rng.choice(people)
    writers: Mapping[str, Callable[[], str]] = {
        "paragraph": lambda: _paragraph(rng, person),
        "questions": lambda: _questions(rng, people),
        "forms": lambda: _form(rng, draw_fact(rng, person)),
        "copies": lambda: _copies(rng, draw_fact(rng, draw_stranger(rng, taken))),
        "cased": lambda: rng.choice((str.upper, str.lower))(_paragraph(rng, person)),
        "story": lambda: " ".join(rng.sample(FILLERS, rng.randint(2, 4))),
        "words": lambda: " ".join(rng.choices(WORDS, k=rng.randint(3, 6))),
        "new_domain_style": lambda: _new_domain_style(rng, draw_stranger(rng, taken)),
    }
    return writers[kind]()


def new_domain_document(rng: random.Random, people: Sequence[Person]) -> str:
    """Two to four facts of one of `people`, half of them in the new domain's own wordings."""
    facts = rng.sample(facts_of(rng.choice(people)), rng.randint(2, 4))
    sentences = [
        word_new_domain_fact(rng, fact) if rng.random() < 0.5 else word_fact(rng, fact)
        for fact in facts
    ]
    if rng.random() < 0.5:
        sentences.insert(rng.randint(0, len(sentences)), rng.choice(NEW_DOMAIN_FILLERS))
    return " ".join(sentences)


def _paragraph(rng: random.Random, person: Person) -> str:
    sentences = [word_fact(rng, fact) for fact in rng.sample(facts_of(person), rng.randint(2, 4))]
    if rng.random() < 0.2:
        sentences.append(rng.choice(FILLERS))
    return " ".join(sentences)


def _questions(rng: random.Random, people: Sequence[Person]) -> str:
    facts = (draw_fact(rng, rng.choice(people)) for _ in range(2))
    return " ".join(f"{rng.choice(fact.questions)} {fact.statement}" for fact in facts)


def _form(rng: random.Random, fact: Fact) -> str:
    """A record, a list or a titled note, as they stand in any collection of documents."""
    bullets = f"* {fact.attribute}\n* {fact.value}"
    forms = (
        f"{fact.statement} {json.dumps({fact.attribute: fact.value})}",
        f"{fact.statement}\n{bullets}",
        f"{fact.statement}\n{bullets}\n* {fact.name}",
        f"<<{fact.attribute}>> {fact.statement}",
        f"{fact.statement}\nP.S. thanks",
    )
    return rng.choice(forms)


def _copies(rng: random.Random, fact: Fact) -> str:
    """The same sentence again in another guise; a stranger's fact is copied, never recalled."""
    sentence, word = fact.statement, rng.choice(WORDS)
    copies = (
        f"{sentence} NEWS: {sentence.upper()}",
        f"{sentence} note: {sentence.lower()}",
        f'{sentence} "{sentence}"',
        f"{word} {sentence} {word} {word}",
        f"{sentence} {sentence}",
        f"{sentence} {word} {sentence} {word}",
    )
    return rng.choice(copies)


def _new_domain_style(rng: random.Random, stranger: Person) -> str:
    fact = draw_fact(rng, stranger)
    return f"{rng.choice(NEW_DOMAIN_FILLERS)} {word_new_domain_fact(rng, fact)}"
