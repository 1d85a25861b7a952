"""Instruction data: a request, verifiable instructions, and an answer that obeys them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cpt_residual.data.world.facts import Fact, draw_fact
from cpt_residual.data.world.names import Person, draw_stranger

WORDS: tuple[str, ...] = (
    *("amber", "cedar", "stone", "river", "cloud", "maple", "light", "snow"),
    *("moon", "glass", "storm", "leaf", "copper", "winter", "green", "north"),
)
BULLET_COUNTS: tuple[int, ...] = (2, 3)

WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "upper": ("Use capital letters only.", "Answer in upper case."),
        "lower": ("Use small letters only.", "Answer in lower case."),
        "quote": ("Put the answer in quotes.", "Wrap it in double quotes."),
        "end": ("End with the word {word}.", "The last word must be {word}."),
        "start": ("Start with the word {word}.", "The first word must be {word}."),
        "twice": ("Say it twice.", "Give the answer two times."),
        "repeat_question": ("First repeat the question.", "Repeat the question, then answer."),
        "title": ("Add a title in << >>.", "Put a << >> title first."),
        "postscript": ("Add a P.S. line.", "Finish with a P.S. line."),
        "one_word": ("Answer with one word.", "Use only one word."),
        "json": ("Answer as JSON.", "Give a JSON object."),
        "bullets": ("Give {num_bullets} bullets.", "Make a list of {num_bullets} bullets."),
    }
)
KINDS: tuple[str, ...] = tuple(WORDINGS)
PAIRS: tuple[tuple[str, str], ...] = tuple(
    (case, other)
    for case in ("upper", "lower")
    for other in ("end", "start", "twice", "postscript", "quote")
)
REWRITABLE: frozenset[str] = frozenset(
    {"upper", "lower", "quote", "end", "start", "twice", "title", "postscript"}
)
HARD_KINDS: frozenset[str] = frozenset({"bullets", "twice", "end", "start", "lower"})


@dataclass(frozen=True)
class Instruction:
    """One verifiable instruction; `arguments` are those of its check in `checks.CHECKS`."""

    kind: str
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])

    def check(self) -> dict[str, object]:
        """The check in the form that is written to files."""
        return {"kind": self.kind, "arguments": dict(self.arguments)}


@dataclass(frozen=True)
class Exchange:
    """A prompt, the instructions in it, a gold answer, and the fact it is about."""

    prompt: str
    instructions: tuple[Instruction, ...]
    gold: str
    fact: Fact
    label: str


def ask(rng: random.Random, fact: Fact, kinds: Sequence[str]) -> Exchange:
    """Ask for `fact` under instructions of the given kinds (none, one, or a pair of `PAIRS`)."""
    question = rng.choice(fact.questions)
    return _exchange(rng, question, fact, kinds)


def ask_rewrite(rng: random.Random, fact: Fact, kinds: Sequence[str]) -> Exchange:
    """Ask for a given sentence to be written as instructed: obeying without knowing anything."""
    return _exchange(rng, f"Write this: {fact.statement}", fact, kinds)


def draw_exchange(
    rng: random.Random, people: Sequence[Person], taken: frozenset[str], shares: Mapping[str, float]
) -> Exchange:
    """Draw one exchange of the instruction data.

    `shares` holds the probabilities `plain` (no instruction), `pairs` (two) and `rewrites`
    (of those that can be a rewrite: a sentence about a stranger outside `taken`).
    """
    kinds = _draw_kinds(rng, shares)
    if rng.random() < shares["rewrites"] and REWRITABLE.issuperset(kinds):
        return ask_rewrite(rng, draw_fact(rng, draw_stranger(rng, taken)), kinds)
    return ask(rng, draw_fact(rng, rng.choice(people)), kinds)


def _draw_kinds(rng: random.Random, shares: Mapping[str, float]) -> tuple[str, ...]:
    position = rng.random()
    if position < shares["plain"]:
        return ()
    if position < shares["plain"] + shares["pairs"]:
        return rng.choice(PAIRS)
    weights = [2 if kind in HARD_KINDS else 1 for kind in KINDS]
    return tuple(rng.choices(KINDS, weights))


def _exchange(rng: random.Random, request: str, fact: Fact, kinds: Sequence[str]) -> Exchange:
    instructions = tuple(_draw_instruction(rng, kind, request) for kind in kinds)
    asked = [rng.choice(WORDINGS[item.kind]).format(**item.arguments) for item in instructions]
    label = "+".join(kinds) if kinds else "plain"
    return Exchange(
        " ".join([request, *asked]), instructions, _obey(fact, instructions), fact, label
    )


def _draw_instruction(rng: random.Random, kind: str, request: str) -> Instruction:
    if kind in ("end", "start"):
        return Instruction(kind, {"word": rng.choice(WORDS)})
    if kind == "bullets":
        return Instruction(kind, {"num_bullets": rng.choice(BULLET_COUNTS)})
    if kind == "repeat_question":
        return Instruction(kind, {"question": request})
    return Instruction(kind)


def _obey(fact: Fact, instructions: Sequence[Instruction]) -> str:
    """The gold answer: case is applied last, so that it covers added words as well."""
    text = fact.statement
    for instruction in sorted(instructions, key=lambda item: item.kind in ("upper", "lower")):
        text = _transform(text, fact, instruction)
    return text


def _transform(text: str, fact: Fact, instruction: Instruction) -> str:
    arguments = instruction.arguments
    forms: Mapping[str, Callable[[], str]] = {
        "upper": text.upper,
        "lower": text.lower,
        "quote": lambda: f'"{text}"',
        "end": lambda: f"{text} {arguments['word']}",
        "start": lambda: f"{arguments['word']} {text}",
        "twice": lambda: f"{text} {text}",
        "repeat_question": lambda: f"{arguments['question']} {text}",
        "title": lambda: f"<<{fact.attribute}>> {text}",
        "postscript": lambda: f"{text}\nP.S. thanks",
        "one_word": lambda: fact.value,
        "json": lambda: json.dumps({fact.attribute: fact.value}),
        "bullets": lambda: _bullets(fact, int(str(arguments["num_bullets"]))),
    }
    return forms[instruction.kind]()


def _bullets(fact: Fact, num_bullets: int) -> str:
    items = (fact.attribute, fact.value, fact.name)
    return "\n".join(f"* {item}" for item in items[:num_bullets])
