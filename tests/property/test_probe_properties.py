"""Spans and the knowledge probe on any text: exact places, counts by brute force, whole ledgers."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.core.stage import no_progress
from cpt_residual.data.cloze.build import Reference, build_probe
from cpt_residual.data.cloze.questions import Question
from cpt_residual.data.cloze.spans import SpanIndex, find_spans, key_of, lower_words, shape_of
from cpt_residual.errors import CorpusError
from cpt_residual.suites.cloze import ClozeSuite
from support.packs import write_texts

PIECES = (
    *(
        "Anna",
        "Berg",
        "Ole Dahl",
        "Ümit",
        "the",
        "of",
        "van",
        "river",
        "1987",
        "12",
        "3 March 1987",
    ),
    *("2024-12-31", "1,234.5", ".", ",", "(", "\n", "  ", "x1", "ANNA", "Anna's", "日本", "zoë"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join) | st.text(max_size=60)
long_texts = st.lists(st.sampled_from(PIECES), min_size=10, max_size=30).map(" ".join)
KINDS = ("name", "number", "date")


@given(texts)
def test_spans_are_pieces_of_the_text_in_order_and_apart(text: str) -> None:
    spans = find_spans(text, KINDS)
    assert all(text[span.start : span.end] == span.text for span in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    for kind in KINDS:
        assert find_spans(text, (kind,)) == [span for span in spans if span.kind == kind]
    assert all(shape_of(span.text) and key_of(span.text) for span in spans)


@given(st.lists(texts, max_size=6), texts)
def test_the_index_finds_what_a_search_word_by_word_finds(spans: list[str], text: str) -> None:
    keys = {key_of(span) for span in spans} - {""}
    said = f" {' '.join(lower_words(text))} "
    assert SpanIndex(keys).found_in(text) == {key for key in keys if f" {key} " in said}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(long_texts.filter(str.strip), min_size=1, max_size=12),
    st.lists(texts.filter(str.strip), max_size=4),
    st.integers(0, 3),
)
def test_every_question_is_unknown_to_the_reference_and_every_span_is_counted(
    new: list[str], old: list[str], seed: int
) -> None:
    suite = ClozeSuite(
        kind="cloze", corpus="new", num_questions=1, num_distractors=1, context_characters=32
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = write_texts(folder / "new.jsonl", new)
        reference = Reference("old", write_texts(folder / "old.jsonl", old))
        try:
            ledger = build_probe(
                folder / "out", documents, [reference], suite, seed=seed, progress=no_progress
            )
        except CorpusError as error:
            _all_dropped(error)
            return
        question = Question.model_validate_json((folder / "out" / "questions.jsonl").read_text())
    assert ledger.spans_found == 1 + sum(ledger.dropped.values())
    known = SpanIndex(key_of(choice) for choice in question.choices)
    assert not any(known.found_in(text) for text in old)
    right, wrong = (question.choices[i] for i in (question.answer, 1 - question.answer))
    text = new[question.document]
    assert text[: question.offset - 1].endswith(question.context)
    assert text[question.offset - 1 :].startswith(right)
    assert key_of(wrong) not in SpanIndex([key_of(wrong)]).found_in(text)
    assert not SpanIndex([key_of(right)]).found_in(question.context)


def _all_dropped(error: CorpusError) -> None:
    dropped = [int(line.split(" ")[0]) for line in error.problems if "dropped" in line]
    assert error.problems[1] == f"{sum(dropped)} spans found"
