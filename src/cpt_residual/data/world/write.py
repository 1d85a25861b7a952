"""Write the whole procedural world as JSON lines: same seed and size, same bytes.

Each file has its own random stream, named after it, so that the size of one file never
changes the contents of another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cpt_residual.data.world.corpora import general_document, new_domain_document
from cpt_residual.data.world.instructions import Exchange, draw_exchange
from cpt_residual.data.world.names import Cast, Person, draw_cast, draw_stranger
from cpt_residual.data.world.probes import fact_probes, instruction_probes
from cpt_residual.data.world.size import WorldSize

Row = Mapping[str, object]


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

    return {
        "general": _general(stream("general"), cast, size.num_general_documents),
        "general_heldout": _general(stream("general_heldout"), cast, size.num_heldout_documents),
        "donor_general": _general(stream("donor_general"), cast, size.num_donor_documents),
        "new_domain": _new_domain(stream("new_domain"), cast, size.num_new_documents),
        "new_domain_heldout": _new_domain(
            stream("new_domain_heldout"), cast, size.num_heldout_documents
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


def _general(rng: random.Random, cast: Cast, num_documents: int) -> Iterator[Row]:
    for _ in range(num_documents):
        yield {"text": general_document(rng, cast.old, cast.names)}


def _new_domain(rng: random.Random, cast: Cast, num_documents: int) -> Iterator[Row]:
    for _ in range(num_documents):
        yield {"text": new_domain_document(rng, cast.new)}


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
