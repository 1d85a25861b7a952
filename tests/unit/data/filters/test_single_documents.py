"""The filters that look at one document alone: normalise, date, length, language."""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime

import pytest

from cpt_residual.config.filters import LANGUAGES, DateRange, Filters, Language, Length, Normalise
from cpt_residual.data.filters.date_range import day_of
from cpt_residual.data.filters.language import detector
from cpt_residual.errors import CorpusError
from support.records import dropped, filtered, records_of

ENGLISH = "The committee will meet again in the spring to discuss what remains of the budget. " * 3
GERMAN = "Der Ausschuss wird im Frühjahr wieder tagen, um über den Rest des Haushalts zu beraten. "
HEX = "0x7f3a 0x19bc 0x88de\n" * 20


# --- normalise -----------------------------------------------------------------------------------
def test_normalise_changes_what_it_says_and_counts_it() -> None:
    text = "Cafe\u0301\r\nau\rlait\x0cpage\x85two\x00\x1b[0m\ttab"
    [record], [ledger] = filtered(Filters(normalise=Normalise()), records_of([text]))
    assert record.text == "Café\nau\nlait\npage\ntwo[0m\ttab"
    assert ledger.counts == {
        "documents_changed": 1,
        "line_ends_replaced": 4,
        "control_characters_removed": 2,
        "documents_recomposed": 1,
    }
    assert ledger.characters_added == len(record.text) - len(text)
    assert record.place == "a.jsonl:1"


def test_a_mark_is_composed_although_a_control_character_stood_before_it() -> None:
    [record], _ = filtered(Filters(normalise=Normalise()), records_of(["e\x00\u0301"]))
    assert record.text == "é"


def test_each_part_of_normalise_can_be_left_out() -> None:
    text = "ﬁ\r\ne\u0301\x00"
    settings = {
        "unicode_form": ("NFKC", unicodedata.normalize("NFKC", text)),
        "line_ends": (True, text.replace("\r\n", "\n")),
        "control_characters": (True, text.replace("\x00", "")),
    }
    off = {"unicode_form": "keep", "line_ends": False, "control_characters": False}
    for name, (value, expected) in settings.items():
        filters = Filters(normalise=Normalise.model_validate({**off, name: value}))
        [record], _ = filtered(filters, records_of([text]))
        assert record.text == expected, name


def test_what_is_blank_after_normalising_is_dropped_and_counted() -> None:
    _, [ledger] = filtered(Filters(normalise=Normalise()), records_of(["\x00\r\n", "text"]))
    assert dropped(ledger) == {"blank": 1}
    assert ledger.characters_in == 7
    assert ledger.characters_out == 4
    assert ledger.characters_added == 0


# --- date ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "day"),
    [
        ("2024-12-01", date(2024, 12, 1)),
        (" 2024-12-01 ", date(2024, 12, 1)),
        ("2024-12-01T05:00:00Z", date(2024, 12, 1)),
        ("2024-12-01 05:00", date(2024, 12, 1)),
        ("2024-12-01T05:00:00.123456789", date(2024, 12, 1)),
        ("2024-12-01 05:00:00 UTC", date(2024, 12, 1)),
        ("2024-12-01 05:00:00 +02:00", date(2024, 12, 1)),
        ("2024-12-01T23:30:00-02:00", date(2024, 12, 2)),
        ("2024-12-01T00:30:00+0200", date(2024, 11, 30)),
        ("0001-01-01T00:00:00+02:00", None),
        ("2024-13-01", None),
        ("2024-02-30", None),
        ("2024-12", None),
        ("2024", None),
        ("20241201", None),
        ("2024-W48-7", None),
        ("1733011200", None),
        ("1733011200000", None),
        ("17330112000000", None),
        ("1 December 2024", None),
        ("01/12/2024", None),
        ("\u0662\u0660\u0662\u0664-12-01", None),
        ("", None),
        (None, None),
    ],
)
def test_the_day_of_a_date(raw: str | None, day: date | None) -> None:
    assert day_of(raw) == day


def test_days_are_those_of_utc_as_datetime_sees_them() -> None:
    for hour in range(24):
        for offset in range(-12, 15):
            written = f"2024-02-29T{hour:02}:30:00{offset:+03}:00"
            assert day_of(written) == datetime.fromisoformat(written).astimezone(UTC).date()


def test_both_ends_are_included_and_the_rest_is_counted() -> None:
    days = ["2024-11-30", "2024-12-01", "2024-12-15", "2024-12-31T23:59:59Z", "2025-01-01"]
    filters = Filters(date=DateRange(not_before=date(2024, 12, 1), not_after=date(2024, 12, 31)))
    remaining, [ledger] = filtered(filters, records_of("abcde", days))
    assert [record.text for record in remaining] == ["b", "c", "d"]
    assert dropped(ledger) == {"before": 1, "after": 1}
    assert ledger.facts["not_before"] == "2024-12-01"


def test_records_without_a_date_are_all_named_in_one_error() -> None:
    filters = Filters(date=DateRange(field="published", not_before=date(2024, 12, 1)))
    records = records_of("abcd", ["2024-12-01", "yesterday", None, "2023-01-01"])
    with pytest.raises(CorpusError) as error:
        filtered(filters, records)
    assert error.value.problems == ("a.jsonl:2: 'yesterday'", "a.jsonl:3: no date")
    assert "'published'" in error.value.what
    assert "unreadable: drop" in error.value.remedy


def test_records_without_a_date_are_dropped_and_counted_when_asked() -> None:
    filters = Filters(date=DateRange(not_before=date(2024, 12, 1), unreadable="drop"))
    remaining, [ledger] = filtered(filters, records_of("abc", ["2024-12-01", "yesterday", None]))
    assert [record.text for record in remaining] == ["a"]
    assert dropped(ledger) == {"no_readable_date": 2}


# --- length --------------------------------------------------------------------------------------
def test_length_counts_characters_and_includes_both_ends() -> None:
    texts = ["é", "éé", "\U0001d54f" * 3, "a" * 4]
    filters = Filters(length=Length(min_characters=2, max_characters=3))
    remaining, [ledger] = filtered(filters, records_of(texts))
    assert [record.text for record in remaining] == texts[1:3]
    assert dropped(ledger) == {"too_short": 1, "too_long": 1}


# --- language ------------------------------------------------------------------------------------
def test_language_keeps_what_was_asked_for_and_says_what_it_found() -> None:
    filters = Filters(language=Language(keep=["en"]))
    texts = [ENGLISH, GERMAN * 3, HEX, "ok"]
    remaining, [ledger] = filtered(filters, records_of(texts))
    assert [record.text for record in remaining] == [ENGLISH]
    assert ledger.counts["found_en"] == 1
    assert ledger.counts["found_de"] == 1
    assert ledger.counts["found_zxx"] == 1
    assert sum(ledger.counts.values()) == len(texts)
    assert sum(dropped(ledger).values()) == 3
    assert ledger.facts["py3langid"]


def test_a_language_that_is_not_sure_enough_is_dropped_as_that() -> None:
    sure, unsure = (
        Filters(language=Language(keep=["en", "de"], min_probability=share)) for share in (0.5, 1.0)
    )
    short = "Der Ausschuss tagt im Frühjahr."
    kept, _ = filtered(sure, records_of([short, GERMAN * 40]))
    assert len(kept) == 2
    with pytest.raises(CorpusError, match=r"language: \d dropped \(unsure\)"):
        filtered(unsure, records_of([short]))


def test_only_the_beginning_decides_the_language() -> None:
    filters = Filters(language=Language(keep=["en"], first_characters=len(ENGLISH)))
    kept, _ = filtered(filters, records_of([ENGLISH + GERMAN * 50]))
    assert len(kept) == 1


def test_the_known_languages_are_those_of_the_library() -> None:
    assert set(detector().labels) == LANGUAGES
