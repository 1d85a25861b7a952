"""Exact and near duplicates, against plain definitions."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from cpt_residual.config.filters import ExactDedup, Filters, NearDedup
from cpt_residual.data.filters.near_dedup import num_bands_for, shingles_of
from cpt_residual.data.filters.words import folded_words
from support.records import dropped, filtered, records_of

EXACT = Filters(exact_dedup=ExactDedup())
WORDS = Filters(exact_dedup=ExactDedup(compare="words"))


def _kept(filters: Filters, texts: Sequence[str]) -> list[str]:
    return [record.text for record in filtered(filters, records_of(texts))[0]]


# --- words ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP_me, now! 3.5", ["don", "t", "stop", "me", "now", "3", "5"]),
        ("Straße ﬁn", ["strasse", "fin"]),
        ("我们 abc学习", ["我", "们", "abc", "学", "习"]),
        ("  ---  ", []),
    ],
)
def test_the_words_of_a_text(text: str, words: list[str]) -> None:
    assert folded_words(text) == words


# --- exact ---------------------------------------------------------------------------------------
def test_the_first_of_equal_documents_is_kept_as_it_is() -> None:
    texts = ["a  b", "a b", "a\nb ", "A b", "cafe\u0301", "café", "a b c"]
    assert _kept(EXACT, texts) == ["a  b", "A b", "cafe\u0301", "a b c"]
    assert _kept(WORDS, texts) == ["a  b", "cafe\u0301", "a b c"]


def test_texts_without_words_are_not_all_the_same() -> None:
    assert _kept(WORDS, ["---", "***", "---"]) == ["---", "***"]


# --- near ----------------------------------------------------------------------------------------
def _document(seed: int, num_words: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(num_words)]


def _edited(words: Sequence[str], num_edits: int, seed: int) -> list[str]:
    """`words` with single words replaced, evenly spread."""
    edited = list(words)
    for at in range(num_edits):
        edited[(at * len(words)) // num_edits] = f"new{seed}x{at}"
    return edited


def _jaccard(first: Sequence[str], second: Sequence[str], num_words: int = 5) -> float:
    sets = [
        {tuple(words[at : at + num_words]) for at in range(len(words) - num_words + 1)}
        for words in (first, second)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_shingles_are_runs_of_words() -> None:
    assert shingles_of("One two, three four", 3) == ["one two three", "two three four"]
    assert shingles_of("One two", 3) == ["one two"]
    assert shingles_of(" -- ", 3) == ["--"]


def test_pairs_far_from_the_threshold_are_decided_as_their_jaccard_similarity_says() -> None:
    """40 pairs; 5 standard errors of the estimate away from the threshold none may be wrong."""
    threshold, num_perm = 0.6, 256
    filters = Filters(near_dedup=NearDedup(threshold=threshold, num_perm=num_perm))
    margin = 5 * 0.5 / num_perm**0.5
    decided = 0
    for seed in range(40):
        words = _document(seed)
        other = _edited(words, 1 + 3 * seed, seed)
        similarity = _jaccard(words, other)
        if abs(similarity - threshold) < margin:
            continue
        decided += 1
        kept = _kept(filters, [" ".join(words), " ".join(other)])
        assert len(kept) == (1 if similarity > threshold else 2), similarity
    assert decided >= 20


def test_no_pair_kept_by_mistake_among_many_documents() -> None:
    """LSH among 600 documents: every clear near copy is found, no stranger is dropped."""
    originals = [" ".join(_document(seed, 120)) for seed in range(300)]
    copies = [" ".join(_edited(_document(seed, 120), 1, seed)) for seed in range(300)]
    filters = Filters(near_dedup=NearDedup())
    remaining, [ledger] = filtered(filters, records_of([*originals, *copies]))
    assert [record.text for record in remaining] == originals
    assert dropped(ledger) == {"near_copy": 300}


def test_case_punctuation_and_repeats_do_not_hide_a_copy() -> None:
    words = _document(1)
    shouted = ". ".join(word.upper() for word in words)
    assert len(_kept(Filters(near_dedup=NearDedup()), [" ".join(words), shouted])) == 1


def test_another_process_and_seed_of_pythons_hashes_give_the_same() -> None:
    code = (
        "from support.records import *\n"
        "from cpt_residual.config.filters import NearDedup\n"
        "import random; rng = random.Random(3)\n"
        "texts = [' '.join(rng.choice('abcdefgh') * 2 for _ in range(40)) for _ in range(60)]\n"
        "settings = NearDedup(threshold=0.2, shingle_words=2, num_perm=32)\n"
        "print(*[r.place for r in filtered(Filters(near_dedup=settings), records_of(texts))[0]])\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": re.sub(r"/unit/.*", "", __file__)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert 0 < len(found.pop().split()) < 60


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [64, 128, 256])
def test_bands_are_as_few_as_recall_allows(threshold: float, num_perm: int) -> None:
    def recall(num_bands: int) -> float:
        return 1 - (1 - threshold ** (num_perm // num_bands)) ** num_bands

    chosen = num_bands_for(threshold, num_perm)
    divisors = [each for each in range(1, num_perm + 1) if num_perm % each == 0]
    assert recall(chosen) >= 0.9
    assert all(recall(each) < 0.9 for each in divisors if each < chosen)
