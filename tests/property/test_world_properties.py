"""Properties of the procedural world, for any seed."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.data.world.checks import follows, states_fact
from cpt_residual.data.world.facts import Fact, draw_fact
from cpt_residual.data.world.instructions import (
    KINDS,
    PAIRS,
    Exchange,
    ask,
    ask_rewrite,
    draw_exchange,
)
from cpt_residual.data.world.names import draw_cast, draw_stranger

SEEDS = st.integers(min_value=0, max_value=2**32)
WANTED = st.sampled_from([(kind,) for kind in KINDS] + list(PAIRS))
SHARES = {"plain": 0.15, "pairs": 0.2, "rewrites": 0.4}


def some_fact(seed: int) -> Fact:
    rng = random.Random(seed)
    return draw_fact(rng, draw_stranger(rng, frozenset()))


def obeyed(exchange: Exchange, response: str, *, loose: bool = False) -> list[bool]:
    return [
        follows(response, instruction.check(), loose=loose) for instruction in exchange.instructions
    ]


@given(SEEDS, WANTED)
def test_gold_answers_pass_their_own_checks(seed: int, kinds: tuple[str, ...]) -> None:
    for draw in (ask, ask_rewrite):
        exchange = draw(random.Random(seed), some_fact(seed), kinds)
        assert all(obeyed(exchange, exchange.gold))
        assert all(obeyed(exchange, exchange.gold, loose=True))
        assert len(exchange.instructions) == len(kinds)


@given(SEEDS, WANTED)
def test_the_plain_answer_never_passes_all_checks(seed: int, kinds: tuple[str, ...]) -> None:
    exchange = ask(random.Random(seed), some_fact(seed), kinds)
    assert not all(obeyed(exchange, exchange.fact.statement))


@given(SEEDS, WANTED)
def test_gold_answers_state_the_fact_and_no_other(seed: int, kinds: tuple[str, ...]) -> None:
    exchange = ask(random.Random(seed), some_fact(seed), kinds)
    assert states_fact(exchange.gold, exchange.fact.value, exchange.fact.distractors)
    wrong = exchange.gold.replace(exchange.fact.value, exchange.fact.distractors[0])
    wrong = wrong.replace(exchange.fact.value.upper(), exchange.fact.distractors[0]).replace(
        exchange.fact.value.lower(), ""
    )
    assert not states_fact(wrong, exchange.fact.value, exchange.fact.distractors)


@given(st.text(max_size=80), SEEDS, WANTED)
def test_verifiers_accept_any_text_and_loose_forgives_more(
    response: str, seed: int, kinds: tuple[str, ...]
) -> None:
    exchange = ask(random.Random(seed), some_fact(seed), kinds)
    strict, loose = obeyed(exchange, response), obeyed(exchange, response, loose=True)
    assert all(
        not was_strict or was_loose for was_strict, was_loose in zip(strict, loose, strict=True)
    )


@settings(max_examples=50)
@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_groups_of_people_are_disjoint_and_strangers_stay_strangers(
    seed: int, taught: int, heldout: int, new: int
) -> None:
    rng = random.Random(seed)
    cast = draw_cast(rng, num_taught=taught, num_heldout=heldout, num_new=new)
    assert (len(cast.taught), len(cast.heldout), len(cast.new)) == (taught, heldout, new)
    assert len(cast.names) == taught + heldout + new
    assert all(draw_stranger(rng, cast.names).name not in cast.names for _ in range(20))


@settings(max_examples=50)
@given(SEEDS)
def test_drawn_dialogues_obey_and_are_reproducible(seed: int) -> None:
    cast = draw_cast(random.Random(seed), num_taught=5, num_heldout=5, num_new=5)
    first, second = (
        [draw_exchange(rng, cast.taught, cast.names, SHARES) for _ in range(20)]
        for rng in (random.Random(seed), random.Random(seed))
    )
    assert first == second
    assert all(all(obeyed(exchange, exchange.gold)) for exchange in first)
    untaught = {person.name for person in cast.heldout + cast.new}
    assert not any(name in exchange.prompt for exchange in first for name in untaught)
