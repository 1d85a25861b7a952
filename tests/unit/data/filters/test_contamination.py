"""The contamination check against a plain search, and what its report says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cpt_residual.config.filters import Contamination, Filters
from cpt_residual.data.filters.references import Reference, read_references, write_references
from cpt_residual.data.filters.words import folded_words
from cpt_residual.errors import CorpusError
from support.records import dropped, filtered, records_of

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
)
SHORT = "Which gas do plants take up from the air by day?"
TINY = "What is two plus two?"
REFERENCES = [
    Reference(task="maths", text=QUESTION),
    Reference(task="biology", text=SHORT),
    Reference(task="maths", text=TINY),
]
REPORT = Filters(contamination=Contamination(action="report"))
DROP = Filters(contamination=Contamination(action="drop"))


def test_a_question_in_another_dress_is_found() -> None:
    inside = f"Homework: {QUESTION.upper().replace(' ', '  ')} Solve it."
    remaining, [ledger] = filtered(DROP, records_of(["Nothing here.", inside]), REFERENCES)
    assert [record.text for record in remaining] == ["Nothing here."]
    assert dropped(ledger) == {"holds_a_question": 1}
    biology, maths = ledger.tasks
    assert (biology.task, maths.task) == ("biology", "maths")
    assert (maths.questions, maths.questions_checked, maths.questions_too_short) == (2, 1, 1)
    assert (maths.questions_found, maths.documents) == (1, 1)
    assert (biology.questions_found, biology.documents) == (0, 0)
    [example] = maths.examples
    assert example.document == 2
    assert example.words == "natalia sold clips to 48 of her friends in april and then she"


def test_report_lets_all_documents_pass_and_counts_the_same() -> None:
    documents = records_of([QUESTION, SHORT, TINY, QUESTION + SHORT, "Nothing here."])
    remaining, [reported] = filtered(REPORT, documents, REFERENCES)
    _, [dropping] = filtered(DROP, documents, REFERENCES)
    assert remaining == documents
    assert reported.tasks == dropping.tasks
    assert reported.counts["documents_contaminated"] == 3
    assert dropped(dropping) == {"holds_a_question": 3}
    assert [task.documents for task in reported.tasks] == [2, 2]


def test_a_part_of_a_question_counts_from_thirteen_words_on() -> None:
    words = folded_words(QUESTION)
    for number in (12, 13):
        _, [ledger] = filtered(REPORT, records_of([" ".join(words[2 : 2 + number])]), REFERENCES)
        assert ledger.counts["documents_contaminated"] == (number == 13)


def test_a_short_question_counts_as_a_whole_only() -> None:
    words = folded_words(SHORT)
    assert 8 <= len(words) < 13
    whole, part = records_of([SHORT, " ".join(words[:-1])])
    _, [ledger] = filtered(REPORT, [whole], REFERENCES)
    assert ledger.counts["documents_contaminated"] == 1
    _, [ledger] = filtered(REPORT, [part], REFERENCES)
    assert ledger.counts["documents_contaminated"] == 0


def test_the_wording_that_many_questions_share_is_not_looked_for() -> None:
    wording = "Choose the best of the following answers to the question that is asked below now"
    rng = random.Random(1)
    own = [" ".join(f"x{rng.randrange(10**6)}" for _ in range(20)) for _ in range(11)]
    references = [Reference(task="all", text=f"{wording} {text}") for text in own[:10]]
    _, [ledger] = filtered(REPORT, records_of([wording]), references)
    assert ledger.tasks[0].questions_found == 10
    references.append(Reference(task="all", text=f"{wording} {own[10]}"))
    references.append(Reference(task="all", text=wording))
    _, [ledger] = filtered(REPORT, records_of([wording, own[10]]), references)
    [task] = ledger.tasks
    assert task.questions_found == 1
    assert task.questions_of_shared_wording == 1
    assert task.ngrams_shared == len(folded_words(wording)) - 12
    assert task.questions_checked == 11


def test_an_ngram_a_question_repeats_is_not_shared_wording() -> None:
    text = " ".join(["a b c d e f g h i j k l m"] * 20)
    _, [ledger] = filtered(REPORT, records_of([text]), [Reference(task="t", text=text)])
    assert ledger.tasks[0].questions_found == 1
    assert ledger.tasks[0].ngrams == 13


def test_examples_are_few() -> None:
    _, [ledger] = filtered(REPORT, records_of([QUESTION] * 9), REFERENCES)
    assert [match.document for match in ledger.tasks[1].examples] == [1, 2, 3, 4, 5]
    assert ledger.tasks[1].documents == 9


def test_nothing_to_look_for_is_an_error() -> None:
    with pytest.raises(CorpusError, match="no questions to look for"):
        filtered(REPORT, records_of(["a"]), [])


def test_references_survive_their_file(tmp_path: Path) -> None:
    odd = Reference(task="x/y", text='a "quoted"\nline \u2028 é')
    counts = write_references(tmp_path / "references.jsonl", iter([*REFERENCES, odd]))
    assert counts == {"maths": 2, "biology": 1, "x/y": 1}
    assert list(read_references(tmp_path / "references.jsonl")) == [*REFERENCES, odd]


def test_a_damaged_file_of_references_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    path.write_text('{"task": "a", "text": "b"}\n{"task": "a"}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"references\.jsonl:2 is no question"):
        list(read_references(path))
