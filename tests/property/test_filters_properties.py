"""Filters: nothing lost, nothing done twice, and what does not depend on order does not."""

from __future__ import annotations

import random
import unicodedata
from contextlib import suppress
from datetime import date

from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.config.filters import (
    Contamination,
    DateRange,
    ExactDedup,
    Filters,
    Length,
    NearDedup,
    Normalise,
)
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.filters.ngrams import NgramIndex
from cpt_residual.data.filters.references import Reference
from cpt_residual.errors import CorpusError
from support.records import filtered

LETTERS = st.sampled_from("abé\u0301\u0300 \r\n\x0b\x0c\x85\x00\x7fAﬁ①가ᄀ\ufeff-")
TEXTS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda text: text.strip())
WORDS = st.sampled_from(["a", "b", "c", "d"])
SENTENCES = st.lists(WORDS, min_size=1, max_size=14).map(" ".join)
DAYS = st.sampled_from([None, "x", "2024-01-01", "2024-01-02", "2024-01-03T23:00:00-03:00"])
RECORDS = st.lists(
    st.builds(Record, st.one_of(TEXTS, SENTENCES), st.just("a:1"), DAYS), min_size=1, max_size=12
)
REFERENCES = st.lists(
    st.builds(Reference, task=st.sampled_from("ab"), text=SENTENCES), min_size=1, max_size=6
)
_DATES = st.none() | st.just(DateRange(not_after=date(2024, 1, 2), unreadable="drop"))
_CONTAMINATION = st.none() | st.builds(
    Contamination,
    action=st.sampled_from(["drop", "report"]),
    ngram_words=st.sampled_from([3, 5]),
    min_words=st.sampled_from([2, 3]),
    max_questions=st.sampled_from([1, 10]),
)
FILTERS = st.builds(
    Filters,
    normalise=st.none() | st.builds(Normalise),
    date=_DATES,
    length=st.none() | st.just(Length(min_characters=2, max_characters=20)),
    exact_dedup=st.none() | st.builds(ExactDedup),
    near_dedup=st.none() | st.just(NearDedup(threshold=0.5, shingle_words=2, num_perm=32)),
    contamination=_CONTAMINATION,
)


def _filtered(
    filters: Filters, records: list[Record], references: list[Reference] | None = None
) -> tuple[list[Record], tuple[FilterLedger, ...]]:
    """As `filtered`; nothing left is fine here."""
    with suppress(CorpusError):
        return filtered(filters, records, references)
    return [], ()


@given(FILTERS, RECORDS, REFERENCES)
def test_every_document_and_character_is_counted(
    filters: Filters, records: list[Record], references: list[Reference]
) -> None:
    remaining, ledgers = _filtered(filters, records, references)
    if not ledgers:
        return
    assert ledgers[0].documents_in == len(records)
    assert ledgers[0].characters_in == sum(len(record.text) for record in records)
    assert ledgers[-1].documents_out == len(remaining)
    assert ledgers[-1].characters_out == sum(len(record.text) for record in remaining)
    for ledger in ledgers:
        lost = sum(drop.documents for drop in ledger.dropped)
        lost_characters = sum(drop.characters for drop in ledger.dropped)
        assert ledger.documents_in == ledger.documents_out + lost
        assert ledger.characters_in + ledger.characters_added == (
            ledger.characters_out + lost_characters
        )
        if ledger.name != "normalise":
            assert ledger.characters_added == 0


@given(FILTERS, RECORDS, REFERENCES)
def test_what_remains_remains_and_stays_in_order(
    filters: Filters, records: list[Record], references: list[Reference]
) -> None:
    """A second time the same filters change and drop nothing."""
    once, _ = _filtered(filters, records, references)
    twice, _ = _filtered(filters, once, references)
    assert twice == once
    if filters.normalise is None:
        positions = [next(i for i, each in enumerate(records) if each is one) for one in once]
        assert positions == sorted(positions)


@given(st.builds(Normalise), TEXTS)
def test_normalised_text_has_one_written_form(settings_: Normalise, text: str) -> None:
    for record in _filtered(Filters(normalise=settings_), [Record(text, "a:1")])[0]:
        if settings_.unicode_form != "keep":
            assert unicodedata.is_normalized(settings_.unicode_form, record.text)
        if settings_.line_ends:
            assert not set(record.text) & set("\r\v\f\x85")
        if settings_.control_characters:
            kinds = {c for c in record.text if unicodedata.category(c) == "Cc"}
            assert kinds <= set("\t\n\r\v\f\x85")


@given(RECORDS, st.randoms(use_true_random=False))
def test_which_texts_exact_dedup_keeps_does_not_depend_on_order(
    records: list[Record], rng: random.Random
) -> None:
    filters = Filters(exact_dedup=ExactDedup())
    shuffled = rng.sample(records, len(records))
    forms = [
        {
            " ".join(unicodedata.normalize("NFC", record.text).split())
            for record in _filtered(filters, order)[0]
        }
        for order in (records, shuffled)
    ]
    assert forms[0] == forms[1]


@given(RECORDS, REFERENCES, st.randoms(use_true_random=False), st.sampled_from([1, 10]))
def test_what_contamination_finds_does_not_depend_on_order(
    records: list[Record], references: list[Reference], rng: random.Random, most: int
) -> None:
    check = Contamination(action="report", ngram_words=4, min_words=2, max_questions=most)
    found = [
        [
            task.model_dump(exclude={"examples"})
            for task in _filtered(Filters(contamination=check), documents, questions)[1][0].tasks
        ]
        for documents, questions in (
            (records, references),
            (rng.sample(records, len(records)), rng.sample(references, len(references))),
        )
    ]
    assert found[0] == found[1]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(WORDS, max_size=9)), min_size=1, max_size=6),
    st.lists(WORDS, max_size=30),
    st.tuples(st.integers(2, 6), st.integers(2, 6)).map(sorted),
    st.integers(1, 3),
)
def test_the_index_finds_what_a_plain_search_finds(
    asked: list[tuple[int, list[str]]], document: list[str], sizes: list[int], most: int
) -> None:
    least, length = sizes
    tasks, questions = [task for task, _ in asked], [words for _, words in asked]
    check = Contamination(action="report", ngram_words=length, min_words=least, max_questions=most)
    index = NgramIndex(questions, tasks, check)
    found = {(each.question, each.start, each.end) for each in index.find(document)}
    assert found == _plain(asked, document, (length, least, most))


def _plain(
    asked: list[tuple[int, list[str]]], document: list[str], limits: tuple[int, int, int]
) -> set[tuple[int, int, int]]:
    length, least, most = limits
    owners: dict[tuple[int, tuple[str, ...]], set[int]] = {}
    for number, (task, words) in enumerate(asked):
        size = min(length, len(words))
        if size >= least:
            for at in range(len(words) - size + 1):
                owners.setdefault((task, tuple(words[at : at + size])), set()).add(number)
    return {
        (question, at, at + len(ngram))
        for (_, ngram), questions in owners.items()
        if len(questions) <= most
        for at in range(len(document) - len(ngram) + 1)
        if tuple(document[at : at + len(ngram)]) == ngram
        for question in questions
    }
