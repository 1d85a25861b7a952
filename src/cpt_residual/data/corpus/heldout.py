"""Write a corpus as JSON lines and hold some documents out of training.

The split is by document and by content: every document gets a rank from a seeded hash of its
text, the lowest ranks are held out. It does not depend on the order of the documents, and a copy
of a held-out document never stays in training.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_residual.data.corpus.ledger import SplitLedger
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE, HELDOUT_FILE
from cpt_residual.data.documents.parsing import document_line
from cpt_residual.errors import CorpusError


def write_corpus(
    out: Path,
    texts: Iterable[str],
    *,
    heldout_documents: int,
    seed: int,
    scratch: Path,
) -> SplitLedger:
    """Write `documents.jsonl` and `heldout.jsonl` below `out`.

    Exactly `heldout_documents` distinct documents are held out. Constant memory besides their
    hashes; where some are held out, the documents pass once through `scratch` (on the disk of
    `out`), which costs their size again.
    """
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    staged = scratch / "all.jsonl"
    lowest = _LowestRanks(heldout_documents, seed)
    num_read, num_characters = _stage(staged, texts, lowest)
    if num_read == 0:
        raise CorpusError(
            "the corpus holds no document", remedy="There is nothing to train on: name other files."
        )
    if heldout_documents:
        ledger = _split(staged, out, lowest)
        staged.unlink()
    else:
        staged.replace(out / DOCUMENTS_FILE)
        (out / HELDOUT_FILE).write_bytes(b"")
        ledger = _all_training(num_read, num_characters)
    if ledger.documents == 0 or ledger.heldout_documents < heldout_documents:
        raise CorpusError(
            f"the corpus has too few documents to hold {heldout_documents} out",
            problems=[f"{num_read} documents, {num_characters} characters; copies count once"],
            remedy="At least one must remain for training: lower heldout_documents, or add some.",
        )
    assert ledger.documents_given == num_read, "a document got lost between two readings"
    assert ledger.characters_given == num_characters, "characters got lost between two readings"
    return ledger


class _LowestRanks:
    """The `num` lowest distinct seeded hashes seen so far."""

    def __init__(self, num: int, seed: int) -> None:
        self._num = num
        self._key = seed.to_bytes(16, "little")
        self._heap: list[int] = []  # negated, so that the largest kept rank is at the top
        self._kept: set[int] = set()
        self._unmet: set[int] = set()

    def rank(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=self._key, person=b"heldout")
        return int.from_bytes(digest.digest(), "big")

    def offer(self, text: str) -> None:
        if self._num == 0:
            return
        rank = self.rank(text)
        if rank in self._kept:
            return
        if len(self._heap) < self._num:
            heapq.heappush(self._heap, -rank)
            self._kept.add(rank)
        elif rank < -self._heap[0]:
            self._kept.discard(-heapq.heapreplace(self._heap, -rank))
            self._kept.add(rank)

    def part_of(self, text: str) -> str:
        """`training`, `heldout` (the first time a kept text is met) or `copy` (any later time)."""
        rank = self.rank(text)
        if rank not in self._kept:
            return "training"
        if rank in self._unmet:
            self._unmet.discard(rank)
            return "heldout"
        return "copy"

    def seal(self) -> None:
        """No further offers: `part_of` may be used from now on."""
        self._unmet = set(self._kept)


def _stage(staged: Path, texts: Iterable[str], lowest: _LowestRanks) -> tuple[int, int]:
    num_read = num_characters = 0
    with staged.open("wb") as file:
        for text in texts:
            file.write(document_line(text))
            lowest.offer(text)
            num_read += 1
            num_characters += len(text)
    lowest.seal()
    return num_read, num_characters


def _all_training(num_documents: int, num_characters: int) -> SplitLedger:
    return SplitLedger(
        documents=num_documents,
        characters=num_characters,
        heldout_documents=0,
        heldout_characters=0,
        heldout_copies_dropped=0,
        heldout_copies_dropped_characters=0,
    )


def _split(staged: Path, out: Path, lowest: _LowestRanks) -> SplitLedger:
    documents = {"training": 0, "heldout": 0, "copy": 0}
    characters = dict(documents)
    with (
        (out / DOCUMENTS_FILE).open("wb") as training,
        (out / HELDOUT_FILE).open("wb") as heldout,
    ):
        for line, text in _staged_texts(staged):
            part = lowest.part_of(text)
            documents[part] += 1
            characters[part] += len(text)
            if part != "copy":
                (training if part == "training" else heldout).write(line)
    return SplitLedger(
        documents=documents["training"],
        characters=characters["training"],
        heldout_documents=documents["heldout"],
        heldout_characters=characters["heldout"],
        heldout_copies_dropped=documents["copy"],
        heldout_copies_dropped_characters=characters["copy"],
    )


def _staged_texts(staged: Path) -> Iterator[tuple[bytes, str]]:
    with staged.open("rb") as file:
        for line in file:
            yield line, json.loads(line)["text"]
