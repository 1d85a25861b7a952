"""The knowledge probe: every question is true, rare, unknown to the references, and counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpt_residual.core.stage import no_progress
from cpt_residual.data.cloze.build import ProbeLedger, Reference, build_probe
from cpt_residual.data.cloze.questions import Question
from cpt_residual.data.cloze.spans import key_of, lower_words, shape_of, telling_words
from cpt_residual.data.documents.line_index import seeded_order
from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.errors import CorpusError
from cpt_residual.suites.cloze import ClozeSuite
from support.packs import FIRST_BYTE, byte_texts, pack, plan, write_texts
from support.rare_spans import records

NEW, OLD = records(60, seed=1), records(60, seed=2)


def suite(**changes: Any) -> ClozeSuite:
    fields: dict[str, Any] = {"kind": "cloze", "corpus": "new", "num_questions": 20}
    return ClozeSuite.model_validate(fields | {"context_characters": 120} | changes, strict=True)


def build(
    folder: Path,
    new: list[str],
    old: list[str] | Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = no_progress,
    documents_packed: int | None = None,
    **changes: Any,
) -> tuple[list[Question], ProbeLedger]:
    folder.mkdir(exist_ok=True)
    documents = write_texts(folder / "documents.jsonl", new)
    file = old if isinstance(old, Path) else write_texts(folder / "general.jsonl", old)
    ledger = build_probe(
        folder / "out",
        documents,
        [Reference("general", file)],
        suite(**changes),
        seed=seed,
        progress=progress,
        documents_packed=documents_packed,
    )
    lines = (folder / "out" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question.model_validate_json(line) for line in lines], ledger


def dropped(error: CorpusError) -> dict[str, int]:
    lines = [line.split(" spans dropped: ") for line in error.problems if "dropped" in line]
    return {reason: int(number.replace(",", "")) for number, reason in lines}


def test_every_question_is_true_and_its_choices_are_alike(tmp_path: Path) -> None:
    questions, ledger = build(tmp_path, NEW, OLD)
    assert len(questions) == ledger.questions == 20
    assert [question.id for question in questions] == list(range(20))
    for question in questions:
        text, target = NEW[question.document], question.choices[question.answer]
        span = target.removeprefix(" ")
        assert text[question.offset :].startswith(span)
        assert text[: question.offset - 1].endswith(question.context)
        assert len(question.context) <= 120
        assert len(set(question.choices)) == 4
        assert question.span_documents == 1
        said = set(lower_words(question.context))
        for choice in question.choices:
            wrong = choice.removeprefix(" ")
            assert choice == f" {wrong}"
            assert shape_of(wrong) == question.shape
            assert not telling_words(wrong) & said
            assert not any(key_of(wrong) in key_of(old) for old in OLD)
            if wrong != span:
                assert wrong not in text
                assert any(wrong in other for other in NEW)


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    _, ledger = build(tmp_path, NEW, OLD)
    assert json.loads((tmp_path / "out" / "ledger.json").read_text()) == ledger.model_dump(
        mode="json"
    )
    assert ledger.spans_found == 60 == ledger.questions + sum(ledger.dropped.values())
    assert ledger.documents == ledger.documents_sampled == 60
    assert ledger.characters == ledger.characters_sampled == sum(map(len, NEW))
    assert ledger.questions_by_kind == {"name": 20}
    assert ledger.chance == 0.25
    (reference,) = ledger.references
    assert (reference.name, reference.documents, reference.spans_met) == ("general", 60, 0)


def test_the_same_again_and_another_with_another_seed(tmp_path: Path) -> None:
    first, again, other = (
        build(tmp_path / name, NEW, OLD, seed=seed)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert {question.document for question in first} != {question.document for question in other}


GUESSERS: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "longest": lambda choice, _: -len(choice),
    "shortest": lambda choice, _: len(choice),
    "nearest in length": lambda choice, all_of_them: sum(
        abs(len(choice) - len(other)) for other in all_of_them
    ),
    "first of the alphabet": lambda choice, _: choice,
    "last letter": lambda choice, _: choice[::-1],
    "most common letters": lambda choice, _: (
        -sum("abcdefghijklmnopqrstuvwxyz".find(c) for c in choice)
    ),
}


@pytest.mark.parametrize("guesser", GUESSERS)
def test_who_does_not_read_the_context_is_right_by_chance(tmp_path: Path, guesser: str) -> None:
    """400 questions: the share right is within 0.08 of 1/4 with odds of thousands to one. Names
    have 2 to 50 letters: far fewer than 400 are of one length."""
    documents = records(440, seed=5, word=word_of_any_length)
    questions, _ = build(tmp_path, documents, OLD, num_questions=400)
    right = 0
    for question in questions:
        ranks = [GUESSERS[guesser](choice, question.choices) for choice in question.choices]
        right += ranks.index(min(ranks)) == question.answer
    assert abs(right / 400 - 0.25) < 0.08


def word_of_any_length(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 25))).capitalize()


def test_what_a_reference_holds_is_not_asked_nor_offered(tmp_path: Path) -> None:
    known = [text.upper() for text in NEW[:30]]
    questions, ledger = build(tmp_path, NEW, [*OLD, *known])
    assert {question.document for question in questions} <= set(range(30, 60))
    offered = {key_of(choice) for question in questions for choice in question.choices}
    assert not any(span in key_of(text) for span in offered for text in known)
    assert ledger.dropped["known to general"] == ledger.references[0].spans_met == 30


def test_dialogues_can_be_a_reference(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": NEW[0]}]
    chat.write_text(json.dumps({"messages": turns}) + "\n")
    _, ledger = build(tmp_path, NEW, chat)
    assert ledger.references[0].spans_met == 1


def test_how_often_a_span_may_stand(tmp_path: Path) -> None:
    twice = [*NEW, *NEW[:25]]
    common, ledger = build(tmp_path / "a", twice, OLD, min_span_documents=2)
    assert {question.span_documents for question in common} == {2}
    assert {question.document for question in common} <= set(range(25))
    assert ledger.dropped["in fewer than 2 documents"] == 35
    assert ledger.dropped["asked for in an earlier document"] == 25
    rare, ledger = build(tmp_path / "b", twice, OLD, max_span_documents=1)
    assert {question.document for question in rare} <= set(range(25, 60))
    assert ledger.dropped["in more than 1 documents"] == 25


def test_documents_are_the_first_that_a_pack_reads_but_all_are_counted(tmp_path: Path) -> None:
    questions, ledger = build(tmp_path, NEW, OLD, max_documents=30)
    first = set(seeded_order(60, seed=0, name="new", epoch=0)[:30].tolist())
    assert {question.document for question in questions} <= first
    assert (ledger.documents_sampled, ledger.documents, ledger.spans_found) == (30, 60, 30)


def test_reasons_not_to_ask(tmp_path: Path) -> None:
    filler = "this is a line of text that is long enough to stand before a name, "
    new = [
        "too near Anna Berg",
        f"{filler}x. Nils Holm came",
        f"{filler}and Ole Dahl, the son of Dahl, or Ole Dahl",
        f"{filler}so holm was mentioned before Ida Holm",
        f"{filler}in ({'Eva Lind'})",
        *NEW,
    ]
    _, ledger = build(tmp_path, new, OLD)
    assert ledger.dropped["too little context"] == 1
    assert ledger.dropped["first words of a sentence"] == 1
    assert ledger.dropped["its words stand in the context"] == 2
    assert ledger.dropped["said again in its document"] == 1
    assert ledger.dropped["not after a single space"] == 1


def test_one_question_a_document_and_no_look_alikes(tmp_path: Path) -> None:
    pairs = [f"{a} {b}" for a, b in zip(NEW[::2], NEW[1::2], strict=True)]
    questions, _ = build(tmp_path / "a", pairs, OLD)
    assert max(Counter(question.document for question in questions).values()) == 1
    lone = [*NEW, "the only one of this kind in all of the text is the year 1987 here"]
    _, ledger = build(tmp_path / "b", lone, OLD, num_questions=60)
    assert ledger.dropped == {"too few look-alikes": 1}


def test_too_few_questions_is_an_error_with_all_numbers(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="corpus new gives 35 of the 500 cloze") as caught:
        build(tmp_path, NEW, [*OLD, *NEW[:25]], num_questions=500)
    assert caught.value.problems[:2] == ("60 of 60 documents searched", "60 spans found")
    assert dropped(caught.value) == {"known to general": 25}
    assert "Lower num_questions" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    build(
        tmp_path,
        NEW * 20,
        OLD,
        progress=lambda *report: seen.append(report),
        max_span_documents=30,
    )
    documents, reference = (tmp_path / name for name in ("documents.jsonl", "general.jsonl"))
    total = 2 * documents.stat().st_size + reference.stat().st_size
    assert seen[-1] == (total, total, "bytes")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert len(seen) > 1


@pytest.mark.parametrize(("budget", "share_asked"), [(3_000, 0.5), (500_000, 1.0)])
def test_only_what_the_pack_holds_is_asked(budget: int, share_asked: float, tmp_path: Path) -> None:
    documents = write_texts(tmp_path / "documents.jsonl", NEW)
    length = min(budget, sum(len(text.encode()) + 2 for text in NEW))
    books = pack(tmp_path / "pack", [byte_texts(documents, "new")], plan(64, length))
    reached = books.documents_reached("new")
    assert 0 < reached <= share_asked * len(NEW)
    questions, ledger = build(tmp_path, NEW, OLD, documents_packed=reached, num_questions=5)
    assert ledger.documents_packed == ledger.documents_sampled == reached
    view = open_pack(tmp_path / "pack")
    ids = np.asarray(view.ids).reshape(-1)
    text = bytes(int(i) - FIRST_BYTE if i >= FIRST_BYTE else 0 for i in ids)
    for question in questions:
        whole = f"{question.context}{question.choices[question.answer]}".encode()
        assert whole in text, "asked, but not in the pack"
