"""The held-out split: exact, by content, and never in training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cpt_residual.data.corpus.heldout import write_corpus
from cpt_residual.data.corpus.ledger import SplitLedger
from cpt_residual.errors import CorpusError

TEXTS = [f"document {number} naïve" for number in range(50)]


def write(folder: Path, texts: list[str], *, heldout: int, seed: int = 0) -> SplitLedger:
    return write_corpus(
        folder / "out", texts, heldout_documents=heldout, seed=seed, scratch=folder / "scratch"
    )


def read(folder: Path, name: str) -> list[str]:
    lines = (folder / "out" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_exactly_so_many_are_held_out_and_the_order_is_kept(tmp_path: Path) -> None:
    ledger = write(tmp_path, TEXTS, heldout=7)
    training, heldout = read(tmp_path, "documents.jsonl"), read(tmp_path, "heldout.jsonl")
    assert len(heldout) == ledger.heldout_documents == 7
    assert not set(training) & set(heldout)
    assert training == [text for text in TEXTS if text not in heldout]
    assert heldout == [text for text in TEXTS if text in heldout]
    assert ledger.characters_given == sum(map(len, TEXTS))
    assert ledger.characters + ledger.heldout_characters == ledger.characters_given
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_split_depends_on_seed_and_content_not_on_order(tmp_path: Path) -> None:
    shuffled = random.Random(3).sample(TEXTS, k=len(TEXTS))
    for name, texts, seed in (("a", TEXTS, 0), ("b", shuffled, 0), ("c", TEXTS, 1)):
        write(tmp_path / name, texts, heldout=9, seed=seed)
    a, b, c = (set(read(tmp_path / name, "heldout.jsonl")) for name in "abc")
    assert a == b
    assert a != c


def test_copies_of_held_out_documents_leave_training_and_are_counted(tmp_path: Path) -> None:
    ledger = write(tmp_path, TEXTS * 3, heldout=10)
    training, heldout = read(tmp_path, "documents.jsonl"), read(tmp_path, "heldout.jsonl")
    assert len(heldout) == len(set(heldout)) == 10
    assert not set(training) & set(heldout)
    assert ledger.heldout_copies_dropped == 20
    assert ledger.documents == 120
    assert ledger.documents_given == 150


def test_without_held_out_documents_copies_stay(tmp_path: Path) -> None:
    ledger = write(tmp_path, ["a", "a"], heldout=0)
    assert read(tmp_path, "documents.jsonl") == ["a", "a"]
    assert read(tmp_path, "heldout.jsonl") == []
    assert ledger.documents == 2


@pytest.mark.parametrize(("texts", "heldout"), [(["a", "b"], 2), (["a", "a", "a"], 2), (["a"], 1)])
def test_too_few_documents_to_hold_out(tmp_path: Path, texts: list[str], heldout: int) -> None:
    with pytest.raises(CorpusError, match=f"too few documents to hold {heldout} out") as caught:
        write(tmp_path, texts, heldout=heldout)
    assert f"{len(texts)} documents" in caught.value.problems[0]


def test_no_document_at_all(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no document"):
        write(tmp_path, [], heldout=0)
