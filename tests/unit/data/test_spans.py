"""Names, numbers and dates: what counts as one, and how it is found again."""

from __future__ import annotations

import sys

import pytest

from cpt_residual.data.cloze.spans import (
    SpanIndex,
    find_spans,
    key_of,
    lower_words,
    shape_of,
    starts_sentence,
    telling_words,
)

ALL = ("name", "number", "date")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("we met Anna Berg there", [("name", "Anna Berg")]),
        ("the Bank of England, and Ümit Öz", [("name", "Bank of England"), ("name", "Ümit Öz")]),
        ("saw Anna's boat and Berg\u2019s house", [("name", "Anna"), ("name", "Berg")]),
        ("to Anna\nBerg", [("name", "Anna"), ("name", "Berg")]),
        ("the van of Al", []),
        ("mail x@Anna.org or see /Berg", []),
        ("A B C D E F is One Two Three Four Five Six", []),
        ("by 1,234.5 or 42% of 7", [("number", "1,234.5"), ("number", "42")]),
        (
            "on 3 March 1987 and March 4, 1988",
            [("date", "3 March 1987"), ("date", "March 4, 1988")],
        ),
        ("since 2024-12-31, May 2020", [("date", "2024-12-31"), ("date", "May 2020")]),
        ("version 1.2.3-rc1 and 12-34 and a1b2", []),
    ],
)
def test_spans(text: str, found: list[tuple[str, str]]) -> None:
    spans = find_spans(text, ALL)
    assert [(span.kind, span.text) for span in spans] == found
    assert all(text[span.start : span.end] == span.text for span in spans)


def test_only_the_kinds_asked_for_but_a_date_is_never_a_number() -> None:
    text = "on 3 March 1987 Anna Berg paid 250 crowns"
    assert [s.text for s in find_spans(text, ("number",))] == ["250"]
    assert [s.text for s in find_spans(text, ("name",))] == ["Anna Berg"]


def test_the_work_grows_with_the_text_and_not_with_its_square() -> None:
    line = "2025-06-12 12:30 Anna Berg took 1000 items\n"

    def work(num_lines: int) -> int:
        """Calls of Python functions."""
        count = 0

        def see(_frame: object, event: str, _argument: object) -> None:
            nonlocal count
            count += event == "call"

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            assert len(find_spans(line * num_lines, ALL)) == 4 * num_lines
        finally:
            sys.setprofile(before)
        return count

    assert work(400) < 6 * work(100)


def test_starts_of_sentences() -> None:
    text = 'Anna came. "Berg left (Ole saw Nils).'
    assert [starts_sentence(text, text.index(name)) for name in ("Anna", "Berg", "Ole")] == [
        True,
        True,
        False,
    ]
    assert not starts_sentence(text, text.index("Nils"))
    assert starts_sentence("one line\n Anna", 10)


def test_shapes() -> None:
    assert shape_of("Anna Berg") == "Aa Aa"
    assert shape_of("1,234") == "9,999"
    assert shape_of("3 March 1987") == "9 Aa 9999"
    assert shape_of("NASA-Öl") == "A-Aa"


def test_words_have_one_form() -> None:
    assert lower_words("Zoe\u0308 SAID: don't!") == ["zoë", "said", "don", "t"]
    assert key_of("Anna-Lena BERG") == "anna lena berg"
    assert telling_words("The van der Berg of 12") == {"the", "berg", "12"}


def test_an_index_finds_whole_words_however_they_are_written() -> None:
    index = SpanIndex([key_of(text) for text in ("Anna Berg", "Berg", "1,234", "Anna Berg Ole")])
    assert index.found_in("ANNA  BERG came") == {"anna berg", "berg"}
    assert index.found_in("anna berg ole") == {"anna berg", "berg", "anna berg ole"}
    assert index.found_in("anna bergs 1,2345") == set()
    assert index.found_in("x1 1 234") == {"1 234"}
    assert index.found_in("anna") == set()
