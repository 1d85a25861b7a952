"""Write the whole procedural world as JSON lines: same seed and size, same bytes.

Each file has its own random stream, named after it, so that the size of one file never
changes the contents of another; only held-out documents are drawn anew where a training corpus
contains the same text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from cpt_residual.data.world.corpora import general_document, new_domain_document
from cpt_residual.data.world.facts import facts_of
from cpt_residual.data.world.instructions import KINDS, PAIRS, Exchange, ask, draw_exchange
from cpt_residual.data.world.names import Cast, Person, draw_cast, draw_stranger
from cpt_residual.data.world.size import WorldSize
from cpt_residual.errors import ConfigError

Row = Mapping[str, object]
_DRAWS_PER_HELDOUT_DOCUMENT = 100


def instruction_probes(
    rng: random.Random, people: Sequence[Person], *, num_per_type: int, num_per_pair: int
) -> Iterator[dict[str, object]]:
    """Prompts of every instruction type and pair, about the facts of `people` in turn."""
    kinds = [(kind,) for kind in KINDS for _ in range(num_per_type)] + [
        pair for pair in PAIRS for _ in range(num_per_pair)
    ]
    facts = [fact for person in people for fact in facts_of(person)]
    order = rng.sample(facts, len(facts))
    for position, wanted in enumerate(kinds):
        yield probe_row(ask(rng, order[position % len(order)], wanted))


def probe_row(exchange: Exchange) -> dict[str, object]:
    """Give the written form: prompt, checks, right value, wrong values, type label."""
    return {
        "prompt": exchange.prompt,
        "checks": [item.check() for item in exchange.instructions],
        "answer": exchange.fact.value,
        "distractors": list(exchange.fact.distractors),
        "type": exchange.label,
    }


def fact_probes(people: Sequence[Person]) -> Iterator[dict[str, object]]:
    """A plain question for every fact of `people` in every wording."""
    for person in people:
        for fact in facts_of(person):
            for question in fact.questions:
                yield {
                    "prompt": question,
                    "answer": fact.value,
                    "distractors": list(fact.distractors),
                }


def write_world(out: Path, *, seed: int, size: WorldSize) -> dict[str, int]:
    """Write every file of the world below `out`; return the number of rows by file stem.

    About two seconds and 5 MB at the default size. Existing files are overwritten.
    """
    cast = world_cast(seed=seed, size=size)
    (out / "probes").mkdir(parents=True, exist_ok=True)
    return {
        name: _write_rows(out / f"{name}.jsonl", rows)
        for name, rows in _files(cast, seed=seed, size=size).items()
    }


def world_cast(*, seed: int, size: WorldSize) -> Cast:
    """The people of the world of this seed: the same that `write_world` writes about."""
    return draw_cast(
        _stream(seed, "cast"),
        num_taught=size.num_people_in_instructions,
        num_heldout=size.num_old_people - size.num_people_in_instructions,
        num_new=size.num_new_people,
    )


def probe_counts(*, seed: int, size: WorldSize) -> dict[str, int]:
    """Number of prompts of every probe of the world."""
    files = _files(world_cast(seed=seed, size=size), seed=seed, size=size)
    return {
        name.removeprefix("probes/"): sum(1 for _ in rows)
        for name, rows in files.items()
        if name.startswith("probes/")
    }


def _files(cast: Cast, *, seed: int, size: WorldSize) -> dict[str, Iterator[Row]]:
    """Lazy rows of every file, by path below the world's folder without the suffix."""

    def stream(name: str) -> random.Random:
        return _stream(seed, name)

    def probes(name: str, people: tuple[Person, ...]) -> Iterator[Row]:
        counts = {
            "num_per_type": size.num_prompts_per_type,
            "num_per_pair": size.num_prompts_per_pair,
        }
        return instruction_probes(stream(name), people, **counts)

    def general(name: str, num_documents: int | None = None) -> Iterator[Row]:
        return islice(_general(stream(name), cast), num_documents)

    def new_domain(name: str, num_documents: int | None = None) -> Iterator[Row]:
        return islice(_new_domain(stream(name), cast), num_documents)

    def trained_on() -> Iterator[Row]:
        yield from general("general", size.num_general_documents)
        yield from general("donor_general", size.num_donor_documents)
        yield from new_domain("new_domain", size.num_new_documents)

    return {
        "general": general("general", size.num_general_documents),
        "general_heldout": _unseen(
            general("general_heldout"), trained_on(), size.num_heldout_documents
        ),
        "donor_general": general("donor_general", size.num_donor_documents),
        "new_domain": new_domain("new_domain", size.num_new_documents),
        "new_domain_heldout": _unseen(
            new_domain("new_domain_heldout"), trained_on(), size.num_heldout_documents
        ),
        "instructions": _dialogues(stream("instructions"), cast, size, size.num_instructions),
        "donor_instructions": _dialogues(
            stream("donor_instructions"), cast, size, size.num_donor_instructions
        ),
        "tokenizer_text": _tokenizer_text(stream("tokenizer_text"), cast, size),
        "probes/instruction_following": probes("instruction_following", cast.heldout),
        "probes/new_instructions": probes("new_instructions", cast.new),
        "probes/new_facts": fact_probes(cast.new),
        "probes/old_facts": fact_probes(cast.heldout),
    }


def _general(rng: random.Random, cast: Cast) -> Iterator[Row]:
    while True:
        yield {"text": general_document(rng, cast.old, cast.names)}


def _new_domain(rng: random.Random, cast: Cast) -> Iterator[Row]:
    while True:
        yield {"text": new_domain_document(rng, cast.new)}


def _unseen(drawn: Iterator[Row], trained_on: Iterable[Row], num_documents: int) -> Iterator[Row]:
    """The first `num_documents` different documents that no training corpus contains.

    Raises ConfigError when the world is too small to hold them."""
    seen = {str(row["text"]) for row in trained_on}
    found = 0
    for row in islice(drawn, _DRAWS_PER_HELDOUT_DOCUMENT * num_documents):
        if found == num_documents:
            return
        if (text := str(row["text"])) not in seen:
            seen.add(text)
            found += 1
            yield row
    if found < num_documents:
        raise ConfigError(
            f"the world holds too few different documents to hold {num_documents} out",
            problems=[f"found {found} that are not in a training corpus"],
            remedy="Lower world.num_heldout_documents or the numbers of training documents.",
        )


def _dialogues(
    rng: random.Random, cast: Cast, size: WorldSize, num_dialogues: int
) -> Iterator[Row]:
    for _ in range(num_dialogues):
        exchange = draw_exchange(rng, cast.taught, cast.names, _shares(size))
        yield {"messages": _messages(exchange)}


def _tokenizer_text(rng: random.Random, cast: Cast, size: WorldSize) -> Iterator[Row]:
    """General text and dialogues about strangers only: every word, nobody in particular."""
    for position in range(size.num_tokenizer_documents):
        strangers = [draw_stranger(rng, cast.names)]
        if position % 2 == 0:
            yield {"text": general_document(rng, strangers, cast.names)}
        else:
            exchange = draw_exchange(rng, strangers, cast.names, _shares(size))
            yield {"text": f"{exchange.prompt}\n{exchange.gold}"}


def _messages(exchange: Exchange) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": exchange.prompt},
        {"role": "assistant", "content": exchange.gold},
    ]


def _shares(size: WorldSize) -> dict[str, float]:
    return {"plain": size.share_plain, "pairs": size.share_pairs, "rewrites": size.share_rewrites}


def _stream(seed: int, name: str) -> random.Random:
    """A random stream that depends on its arguments only (strings are hashed by SHA-512)."""
    return random.Random(f"{seed}/{name}")


def _write_rows(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
