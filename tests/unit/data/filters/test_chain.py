"""The chain: order, counting, nothing lost, nothing left."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from datetime import date
from itertools import pairwise

import pytest

from cpt_residual.config.filters import (
    Contamination,
    DateRange,
    ExactDedup,
    Filters,
    Language,
    Length,
    NearDedup,
    Normalise,
)
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.chain import FilterChain, library_versions
from cpt_residual.data.filters.references import Reference
from cpt_residual.errors import CorpusError
from support.records import dropped, filtered, records_of

ALL = Filters(
    contamination=Contamination(action="drop", ngram_words=5, min_words=3),
    near_dedup=NearDedup(shingle_words=2),
    exact_dedup=ExactDedup(),
    language=Language(keep=["en"]),
    length=Length(min_characters=20),
    date=DateRange(not_before=date(2024, 1, 1)),
    normalise=Normalise(),
)
NEWS = "The council of the town will meet on Monday to talk about the new bridge over the river."
OTHER = "After many years of work the museum opened its doors and people came from everywhere."


def test_without_filters_everything_goes_through_and_nothing_is_recorded() -> None:
    records = records_of(["a", "a", "b\r\n"])
    remaining, ledgers = filtered(Filters(), records)
    assert remaining == records
    assert ledgers == ()


def test_all_filters_in_their_order_each_with_its_counts() -> None:
    texts = [
        NEWS,
        NEWS.replace(" ", "\r\n", 1),  # a copy once normalised, as white space is one blank
        NEWS.replace("Monday", "Tuesday"),
        "short",
        "Der Rat der Stadt wird am Montag über die neue Brücke über den Fluss beraten.",
        f"{OTHER} What is the name of the river?",
        "Old: " + OTHER,
        OTHER.replace("museum", "gallery").replace("people", "visitors"),
    ]
    dates = ["2024-05-01"] * 6 + ["2023-12-31", "2024-05-01"]
    references = [Reference(task="rivers", text="What is the name of the river?")]
    near = ALL.near_dedup.model_copy(update={"threshold": 0.6}) if ALL.near_dedup else None
    filters = ALL.model_copy(update={"near_dedup": near})
    remaining, ledgers = filtered(filters, records_of(texts, dates), references)
    assert [ledger.name for ledger in ledgers] == list(Filters.model_fields)
    assert [dropped(ledger) for ledger in ledgers] == [
        {},
        {"before": 1},
        {"too_short": 1},
        {"other_language": 1},
        {"copy": 1},
        {"near_copy": 1},
        {"holds_a_question": 1},
    ]
    assert [record.text for record in remaining] == [texts[0], texts[7]]
    for before, after in pairwise(ledgers):
        assert after.documents_in == before.documents_out
        assert after.characters_in == before.characters_out


def test_one_document_is_taken_at_a_time() -> None:
    taken: list[str] = []

    def source() -> Iterator[Record]:
        for record in records_of(["one", "two", "three"]):
            taken.append(record.text)
            yield record

    stream = FilterChain(Filters(exact_dedup=ExactDedup()))(source())
    next(stream)
    assert taken == ["one"]
    assert [record.text for record in stream] == ["two", "three"]


def test_nothing_left_is_an_error_that_says_which_pass_took_it() -> None:
    filters = Filters(length=Length(min_characters=5), exact_dedup=ExactDedup())
    with pytest.raises(CorpusError) as error:
        filtered(filters, records_of(["abc", "d"]))
    assert error.value.what == "the filters left none of 2 documents"
    assert error.value.problems == ("length: 2 dropped (too short)",)


def test_no_document_at_all_is_not_the_filters_business() -> None:
    assert filtered(ALL, [], [Reference(task="a", text="b")])[0] == []


def test_libraries_are_named_only_where_they_decide() -> None:
    assert library_versions(Filters()) == {}
    assert library_versions(Filters(length=Length(min_characters=1))) == {}
    assert sorted(library_versions(ALL)) == ["py3langid", "rensa", "unicode"]


@pytest.mark.parametrize(
    "filters",
    [
        Filters(normalise=Normalise()),
        Filters(exact_dedup=ExactDedup()),
        Filters(contamination=Contamination(action="report")),
    ],
)
def test_what_the_tables_of_unicode_decide_names_their_version(filters: Filters) -> None:
    assert library_versions(filters) == {"unicode": unicodedata.unidata_version}
