"""The procedural world: files, counts, held-out people, and that every verifier can say no."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cpt_residual.data.world.checks import CHECKS, follows, states_fact
from cpt_residual.data.world.corpora import general_document, new_domain_document
from cpt_residual.data.world.facts import Fact
from cpt_residual.data.world.instructions import KINDS, PAIRS, ask
from cpt_residual.data.world.names import Cast
from cpt_residual.data.world.size import WorldSize
from cpt_residual.data.world.write import _unseen, world_cast, write_world
from cpt_residual.errors import ConfigError

SMALL = WorldSize(
    num_general_documents=300,
    num_new_documents=200,
    num_donor_documents=50,
    num_heldout_documents=20,
    num_instructions=400,
    num_donor_instructions=100,
    num_tokenizer_documents=200,
    num_prompts_per_type=2,
    num_prompts_per_pair=1,
)
FACT = Fact(name="Bala Torka", attribute="pet", value="goat")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, seed=5, size=SMALL)
    return out


@pytest.fixture(scope="module")
def cast() -> Cast:
    return world_cast(seed=5, size=SMALL)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.jsonl"))
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_counts_are_the_rows_written(world: Path, tmp_path: Path) -> None:
    counts = write_world(tmp_path, seed=5, size=SMALL)
    assert counts == {name: len(read_rows(tmp_path / f"{name}.jsonl")) for name in counts}
    assert counts["general"] == 300
    assert counts["instructions"] == 400
    assert counts["probes/instruction_following"] == 2 * len(KINDS) + len(PAIRS)
    assert counts["probes/new_facts"] == SMALL.num_new_people * 4 * 2
    assert digests(tmp_path) == digests(world)


def test_the_same_bytes_in_another_process_with_another_hash_seed(
    world: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from cpt_residual.data.world.write import *;"
        f"write_world(Path(sys.argv[1]), seed=5, size={SMALL!r}); assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env)
    assert digests(tmp_path) == digests(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, seed=6, size=SMALL)
    assert not set(digests(tmp_path).values()) & set(digests(world).values())


def test_the_size_of_one_file_does_not_change_another(world: Path, tmp_path: Path) -> None:
    size = WorldSize(**{**vars(SMALL), "num_general_documents": 310, "num_instructions": 3})
    write_world(tmp_path, seed=5, size=size)
    changed = {name for name, digest in digests(tmp_path).items() if digest != digests(world)[name]}
    assert changed == {"general.jsonl", "instructions.jsonl"}
    assert read_rows(tmp_path / "general.jsonl")[:300] == read_rows(world / "general.jsonl")


@pytest.mark.parametrize(
    "stem",
    [
        "general",
        "general_heldout",
        "donor_general",
        "instructions",
        "donor_instructions",
        "tokenizer_text",
    ],
)
def test_new_people_are_unheard_of_before_cpt(world: Path, cast: Cast, stem: str) -> None:
    text = (world / f"{stem}.jsonl").read_text(encoding="utf-8").lower()
    assert [person.name for person in cast.new if person.name.lower() in text] == []


@pytest.mark.parametrize(
    "stem", ["instructions", "donor_instructions", "tokenizer_text", "new_domain"]
)
def test_heldout_people_are_in_no_instruction_data(world: Path, cast: Cast, stem: str) -> None:
    text = (world / f"{stem}.jsonl").read_text(encoding="utf-8").lower()
    assert [person.name for person in cast.heldout if person.name.lower() in text] == []


def test_the_general_corpus_knows_every_old_person_and_the_new_domain_every_new_one(
    world: Path, cast: Cast
) -> None:
    general = (world / "general.jsonl").read_text(encoding="utf-8").lower()
    new_domain = (world / "new_domain.jsonl").read_text(encoding="utf-8").lower()
    assert all(person.name.lower() in general for person in cast.old)
    assert all(person.name.lower() in new_domain for person in cast.new)


def test_no_heldout_document_was_trained_on(world: Path) -> None:
    trained = {
        row["text"]
        for stem in ("general", "donor_general", "new_domain")
        for row in read_rows(world / f"{stem}.jsonl")
    }
    for stem in ("general_heldout", "new_domain_heldout"):
        texts = [row["text"] for row in read_rows(world / f"{stem}.jsonl")]
        assert len(set(texts)) == len(texts)
        assert trained.isdisjoint(texts)


def test_a_world_too_small_to_hold_documents_out_says_so() -> None:
    rows = iter([{"text": "same"}] * 1000)
    with pytest.raises(ConfigError, match="too few different documents to hold 2 out"):
        list(_unseen(rows, [], 2))


def test_the_new_domain_brings_no_new_words() -> None:
    """Given enough general text; names aside, which are new only as combinations."""
    people = world_cast(seed=0, size=WorldSize())
    general = " ".join(
        general_document(random.Random(i), people.old, people.names) for i in range(3000)
    )
    new_domain = " ".join(new_domain_document(random.Random(i), people.new) for i in range(500))
    assert set(re.findall(r"\w+", new_domain)) <= set(re.findall(r"\w+", general))


def test_probes_are_about_the_right_people_and_cover_every_type(world: Path, cast: Cast) -> None:
    for stem, people in (("instruction_following", cast.heldout), ("new_instructions", cast.new)):
        rows = read_rows(world / "probes" / f"{stem}.jsonl")
        assert Counter(row["type"] for row in rows) == Counter(
            dict.fromkeys(KINDS, 2) | {"+".join(pair): 1 for pair in PAIRS}
        )
        assert all(any(person.name in str(row["prompt"]) for person in people) for row in rows)
    for stem, people in (("old_facts", cast.heldout), ("new_facts", cast.new)):
        rows = read_rows(world / "probes" / f"{stem}.jsonl")
        assert len({str(row["prompt"]) for row in rows}) == len(rows) == 8 * len(people)
        assert all(len(set(row["distractors"]) | {row["answer"]}) == 16 for row in rows)


def test_probe_answers_are_the_facts_of_the_cast(world: Path, cast: Cast) -> None:
    for row in read_rows(world / "probes" / "new_instructions.jsonl"):
        (person,) = [person for person in cast.new if person.name in str(row["prompt"])]
        (attribute,) = [
            word for word in str(row["prompt"]).split() if word in ("job", "city", "food", "pet")
        ]
        assert row["answer"] == person.value(attribute)


@pytest.mark.parametrize("kind", KINDS)
def test_each_verifier_accepts_gold_and_refuses_the_plain_answer(kind: str) -> None:
    exchange = ask(random.Random(0), FACT, (kind,))
    (check,) = [instruction.check() for instruction in exchange.instructions]
    assert follows(exchange.gold, check)
    assert follows(exchange.gold, check, loose=True)
    assert not follows(FACT.statement, check)
    assert not follows("", check)
    assert not follows("  \n", check, loose=True)


@pytest.mark.parametrize(
    ("kind", "arguments", "bad"),
    [
        ("upper", {}, "THE PET OF BALA TORKA IS A GOAt."),
        ("lower", {}, "the pet of Bala torka is goat."),
        ("quote", {}, '"The pet of Bala Torka is goat.'),
        ("quote", {}, '""'),
        ("end", {"word": "snow"}, "The pet is goat. snowy"),
        ("end", {"word": "snow"}, "snow The pet is goat."),
        ("start", {"word": "snow"}, "The pet is goat. snow"),
        ("twice", {}, "The pet is goat. The pet is frog."),
        ("twice", {}, "goat goat goat"),
        (
            "repeat_question",
            {"question": "What is the pet of Bala Torka?"},
            "What is the pet of Bala Torka?",
        ),
        ("title", {}, "<<>> The pet is goat."),
        ("title", {}, "<pet> The pet is goat."),
        ("postscript", {}, "P.S. thanks"),
        ("postscript", {}, "The pet is goat.\nP.S."),
        ("one_word", {}, "a goat"),
        ("json", {}, '{"pet": "goat"'),
        ("json", {}, '["goat"]'),
        ("json", {}, "12"),
        ("bullets", {"num_bullets": 2}, "* pet"),
        ("bullets", {"num_bullets": 2}, "* pet\n* goat\n* Bala Torka"),
    ],
)
def test_near_misses_are_refused(kind: str, arguments: dict[str, object], bad: str) -> None:
    assert not follows(bad, {"kind": kind, "arguments": arguments})


def test_loose_scoring_forgives_first_and_last_lines_and_asterisks() -> None:
    upper = {"kind": "upper", "arguments": {}}
    assert not follows("Sure:\nGOAT", upper)
    assert follows("Sure:\nGOAT", upper, loose=True)
    assert follows("Sure:\nGOAT\nbye", upper, loose=True)
    assert follows('*"goat"*', {"kind": "quote", "arguments": {}}, loose=True)
    assert not follows("goat", upper, loose=True)


def test_a_fact_is_stated_only_without_wrong_values() -> None:
    assert states_fact("THE PET IS GOAT.", "goat", ("dog", "cat"))
    assert states_fact('{"city": "Rome"}', "Rome", ("Lima",))
    assert not states_fact("the pet is goat or dog.", "goat", ("dog", "cat"))
    assert not states_fact("the pet is goats.", "goat", ("dog", "cat"))
    assert not states_fact("", "goat", ("dog",))


def test_unknown_checks_and_bad_arguments_are_errors() -> None:
    with pytest.raises(KeyError, match="rhyme"):
        follows("x", {"kind": "rhyme", "arguments": {}})
    with pytest.raises(TypeError, match="arguments must be a mapping"):
        follows("x", {"kind": "upper", "arguments": None})
    assert set(CHECKS) == set(KINDS)
