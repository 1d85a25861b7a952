"""The filters of a corpus as configuration: off by default, checked, and said in few words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.corpora import HubCorpus
from cpt_residual.config.filters import Filters

PREFIX = "corpora.new_domain.filters"


def _filters(*overrides: str) -> Filters:
    given = [f"{PREFIX}{override}" for override in overrides]
    corpus = compose(["+experiment=llama3_500m", *given]).corpora["new_domain"]
    assert isinstance(corpus, HubCorpus)
    return corpus.filters


def test_all_are_off_unless_named() -> None:
    assert _filters().model_dump(exclude_none=True) == {}


def test_a_pass_is_on_once_it_is_named() -> None:
    filters = _filters(".exact_dedup={}", ".date.not_before=2024-12-01", ".language.keep=[en,de]")
    assert filters.exact_dedup is not None
    assert filters.date is not None
    assert filters.date.not_before == date(2024, 12, 1)
    assert filters.language is not None
    assert filters.language.keep == ["en", "de"]
    assert Filters.model_validate(filters.model_dump(mode="json"), strict=True) == filters


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("date", {}, "give not_before, not_after or both"),
        ("date", {"not_before": "2024-12-02", "not_after": "2024-12-01"}, "is after 2024-12-01"),
        ("date", {"not_before": 20241201}, "20241201: a day is written as YYYY-MM-DD"),
        ("date", {"not_before": "2024-12"}, "'2024-12': a day is written as YYYY-MM-DD"),
        ("date", {"not_before": "2024-13-01"}, "month must be in 1..12"),
        ("length", {}, "give min_characters, max_characters or both"),
        ("length", {"min_characters": 9, "max_characters": 8}, "min_characters 9 is above"),
        ("language", {"keep": []}, "must not be empty"),
        ("language", {"keep": ["en", "english"]}, "unknown language 'english'; known are codes"),
        ("near_dedup", {"num_perm": 100}, "multiple of 16"),
        ("near_dedup", {"threshold": 1.5}, "less than or equal to 1"),
        ("contamination", {}, "contamination.action: required, no default"),
        ("contamination", {"action": "drop", "min_words": 14}, "min_words 14 is above ngram_words"),
        ("lenght", {"min_characters": 1}, "Did you mean 'length'?"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    problems: Callable[..., list[str]], name: str, settings: dict[str, object], problem: str
) -> None:
    corpus = {"kind": "local", "files": ["a.jsonl"], "filters": {name: settings}}
    [found] = problems(("corpora/new_domain", corpus))
    assert found.startswith(f"{PREFIX}.{name}")
    assert problem in found
    assert "Value error" not in found


def test_a_check_against_nothing_is_refused(problems: Callable[..., list[str]]) -> None:
    filters = {"contamination": {"action": "report"}}
    corpus = {"kind": "local", "files": ["a.jsonl"], "heldout_documents": 9, "filters": filters}
    found = problems(("corpora/new_domain", corpus), ("evaluation/suites", ["heldout"]))
    assert any("none of evaluation.suites asks questions" in line for line in found)


def test_renamed_keys_name_the_new_one(problems: Callable[..., list[str]]) -> None:
    corpus = {"kind": "local", "files": ["a.jsonl"], "passes": {"length": None}}
    assert problems(("corpora/new_domain", corpus), ("packs/cpt/sources/0/max_passes", 2)) == [
        "corpora.new_domain.passes: {'length': None}: this key was renamed to filters.",
        "packs.cpt.sources[0].max_passes: 2: this key was renamed to max_epochs.",
    ]
