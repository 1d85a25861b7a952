"""Evaluation prompts of the procedural world: instruction following, new facts, old facts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from cpt_residual.data.world.facts import facts_of
from cpt_residual.data.world.instructions import KINDS, PAIRS, Exchange, ask
from cpt_residual.data.world.names import Person

Row = dict[str, object]


def instruction_probes(
    rng: random.Random, people: Sequence[Person], *, num_per_type: int, num_per_pair: int
) -> Iterator[Row]:
    """Prompts of every instruction type and pair, about the facts of `people` in turn."""
    kinds = [(kind,) for kind in KINDS for _ in range(num_per_type)] + [
        pair for pair in PAIRS for _ in range(num_per_pair)
    ]
    facts = [fact for person in people for fact in facts_of(person)]
    order = rng.sample(facts, len(facts))
    for position, wanted in enumerate(kinds):
        yield probe_row(ask(rng, order[position % len(order)], wanted))


def probe_row(exchange: Exchange) -> Row:
    """Give the written form: prompt, checks, right value, wrong values, type label."""
    return {
        "prompt": exchange.prompt,
        "checks": [item.check() for item in exchange.instructions],
        "answer": exchange.fact.value,
        "distractors": list(exchange.fact.distractors),
        "type": exchange.label,
    }


def fact_probes(people: Sequence[Person]) -> Iterator[Row]:
    """A plain question for every fact of `people` in every wording."""
    for person in people:
        for fact in facts_of(person):
            for question in fact.questions:
                yield {
                    "prompt": question,
                    "answer": fact.value,
                    "distractors": list(fact.distractors),
                }
