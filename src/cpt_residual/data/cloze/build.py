"""A knowledge probe of a corpus: cloze questions about rare spans that training text holds and a
reference set does not.

Three passes, each over one document at a time:
1. spans of the first `max_documents` documents in the order in which a pack reads the corpus, and
   of no document that the pack of CPT does not reach;
2. all training documents: in how many does each span stand?
3. all reference documents: does it stand there at all?

Memory: about 1 kB per span (at most 16 a document asked about) and 8 bytes per document (32 for a
moment, while their order is found), whatever the size of the corpus. Price: one reading of the
corpus and of every reference (10 to 20 million characters a second), and of the documents asked
about once more (4 million a second).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cpt_residual.base_model import Frozen
from cpt_residual.config.cloze import ClozeQuestions
from cpt_residual.core.files import write_json_atomic
from cpt_residual.data.cloze.questions import (
    QUESTIONS_FILE,
    SPANS_PER_DOCUMENT,
    Candidate,
    Question,
    choose_questions,
    why_unusable,
)
from cpt_residual.data.cloze.spans import Span, SpanIndex, find_spans, key_of
from cpt_residual.data.documents.file_names import LEDGER_FILE
from cpt_residual.data.documents.line_index import LineIndex, seeded_order
from cpt_residual.data.documents.parsing import parse_text
from cpt_residual.errors import CorpusError

_REPORT_EVERY = 1000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Reference:
    """Documents (texts or dialogues) in which no asked span may occur."""

    name: str
    path: Path


class ReferenceLedger(Frozen):
    """What was read of one reference. `spans_met`: candidates that it holds."""

    name: str
    documents: int
    characters: int
    spans_met: int


class ProbeLedger(Frozen):
    """Where every span went: spans_found = questions + the sum of `dropped`. documents_packed: how
    many documents the pack of CPT holds from beginning to end, None where no pack was given."""

    documents: int
    characters: int
    documents_packed: int | None = None
    documents_sampled: int
    characters_sampled: int
    spans_found: int
    dropped: Mapping[str, int]
    questions: int
    questions_by_kind: Mapping[str, int]
    chance: float
    references: tuple[ReferenceLedger, ...]


def build_probe(  # noqa: PLR0913  all of it is asked for
    out: Path,
    documents: Path,
    references: Sequence[Reference],
    suite: ClozeQuestions,
    *,
    seed: int,
    progress: Progress,
    documents_packed: int | None = None,
) -> ProbeLedger:
    """Write `questions.jsonl` and `ledger.json` below `out`: exactly `num_questions` questions.

    The same for the same documents, references, suite, seed and `documents_packed`: so many
    documents does the pack hold, and no other is asked about. Raises CorpusError with all counts
    when there are fewer.
    """
    files = _Bytes([documents, documents, *(each.path for each in references)], progress)
    count = _Count(suite, files, documents_packed)
    with LineIndex(documents) as index:
        candidates = count.candidates(index, seed=seed)
        candidates = count.rare(candidates, documents)
        for reference in references:
            candidates = count.unknown_to(reference, candidates)

        def read_text(number: int) -> str:
            return parse_text(index.line(number), index.place(number))

        questions, left = choose_questions(candidates, suite, read_text)
    files.finish()
    count.dropped.update(left)
    ledger = count.ledger(questions)
    if len(questions) < suite.num_questions:
        raise _too_few(suite, ledger)
    assert ledger.spans_found == ledger.questions + sum(ledger.dropped.values()), "a span got lost"
    out.mkdir(parents=True, exist_ok=True)
    with (out / QUESTIONS_FILE).open("w", encoding="utf-8", newline="\n") as file:
        for question in questions:
            file.write(json.dumps(question.model_dump(), ensure_ascii=False) + "\n")
    write_json_atomic(out / LEDGER_FILE, ledger)
    return ledger


class _Bytes:
    """Progress over files that are read one after the other."""

    def __init__(self, files: Sequence[Path], progress: Progress) -> None:
        self._total = sum(path.stat().st_size for path in files)
        self._progress = progress
        self._done = self._lines = 0

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._lines += 1
        if self._lines % _REPORT_EVERY == 0:
            self._progress(min(self._done, self._total), self._total, "bytes")

    def finish(self) -> None:
        """All that had to be read is read."""
        self._progress(self._total, self._total, "bytes")

    def lines(self, path: Path) -> Iterator[bytes]:
        """The lines of a documents file."""
        with path.open("rb") as file:
            for line in file:
                yield line
                self.add(len(line))


class _Count:
    """The three passes, and the count of what each leaves out."""

    def __init__(self, suite: ClozeQuestions, files: _Bytes, documents_packed: int | None) -> None:
        self._suite, self._files, self._documents_packed = suite, files, documents_packed
        self.dropped: Counter[str] = Counter()
        self._references: list[ReferenceLedger] = []
        self._found = self._documents = self._characters = 0
        self._documents_sampled = self._characters_sampled = 0

    def candidates(self, index: LineIndex, *, seed: int) -> list[Candidate]:
        """Usable spans of the sampled documents, each span once."""
        suite = self._suite
        order = seeded_order(len(index), seed=seed, name=suite.corpus, epoch=0)
        packed = len(index) if self._documents_packed is None else self._documents_packed
        numbers: list[int] = sorted(order[: min(suite.max_documents, packed)].tolist())
        del order
        found: dict[str, Candidate] = {}
        for number in numbers:
            line = index.line(number)
            text = parse_text(line, index.place(number))
            self._documents_sampled += 1
            self._characters_sampled += len(text)
            for candidate in self._of_document(text, number, seed):
                if candidate.key in found:
                    self.dropped["asked for in an earlier document"] += 1
                else:
                    found[candidate.key] = candidate
            self._files.add(len(line) + 1)
        return list(found.values())

    def _of_document(self, text: str, number: int, seed: int) -> list[Candidate]:
        usable: dict[str, Candidate] = {}
        met: set[str] = set()
        for span in find_spans(text, self._suite.span_kinds):
            self._found += 1
            key = key_of(span.text)
            reason = why_unusable(text, span, max_characters=self._suite.context_characters)
            if key in met:
                reason = "said again in its document"
            met.add(key)
            if reason:
                self.dropped[reason] += 1
            else:
                usable[key] = Candidate(span, key, number, _rank(seed, number, span))
        kept = sorted(usable.values(), key=lambda each: each.rank)[:SPANS_PER_DOCUMENT]
        self.dropped["too many in its document"] += len(usable) - len(kept)
        return kept

    def rare(self, candidates: Sequence[Candidate], documents: Path) -> list[Candidate]:
        """Those that stand in as many training documents as the suite wants."""
        suite, by_key = self._suite, {each.key: each for each in candidates}
        index = SpanIndex(by_key)
        for number, line in enumerate(self._files.lines(documents)):
            text = _texts(line)
            self._documents += 1
            self._characters += len(text)
            for key in index.found_in(text):
                where = by_key[key].documents
                if len(where) <= suite.max_span_documents:
                    where.append(number)
        common = [c for c in candidates if len(c.documents) > suite.max_span_documents]
        lone = [c for c in candidates if len(c.documents) < suite.min_span_documents]
        self.dropped[f"in more than {suite.max_span_documents} documents"] += len(common)
        self.dropped[f"in fewer than {suite.min_span_documents} documents"] += len(lone)
        bounds = range(suite.min_span_documents, suite.max_span_documents + 1)
        return [each for each in candidates if len(each.documents) in bounds]

    def unknown_to(self, reference: Reference, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that `reference` does not hold."""
        index, known = SpanIndex(each.key for each in candidates), set[str]()
        num_documents = num_characters = 0
        for line in self._files.lines(reference.path):
            text = _texts(line)
            num_documents += 1
            num_characters += len(text)
            known |= index.found_in(text)
        self._references.append(
            ReferenceLedger(
                name=reference.name,
                documents=num_documents,
                characters=num_characters,
                spans_met=len(known),
            )
        )
        self.dropped[f"known to {reference.name}"] += len(known)
        return [each for each in candidates if each.key not in known]

    def ledger(self, questions: Sequence[Question]) -> ProbeLedger:
        by_kind = Counter(question.span_kind for question in questions)
        return ProbeLedger(
            documents=self._documents,
            characters=self._characters,
            documents_packed=self._documents_packed,
            documents_sampled=self._documents_sampled,
            characters_sampled=self._characters_sampled,
            spans_found=self._found,
            dropped={reason: num for reason, num in sorted(self.dropped.items()) if num},
            questions=len(questions),
            questions_by_kind=dict(sorted(by_kind.items())),
            chance=self._suite.chance,
            references=tuple(self._references),
        )


def _rank(seed: int, document: int, span: Span) -> int:
    place = f"cloze/{seed}/{document}/{span.start}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")


def _texts(line: bytes) -> str:
    """A document's text; of a dialogue, all of its turns."""
    row = cast("Mapping[str, object]", json.loads(line))
    if "text" in row:
        return cast("str", row["text"])
    turns = cast("Sequence[Mapping[str, str]]", row["messages"])
    return "\n".join(turn["content"] for turn in turns)


def _too_few(suite: ClozeQuestions, ledger: ProbeLedger) -> CorpusError:
    dropped = sorted(ledger.dropped.items(), key=lambda item: -item[1])
    return CorpusError(
        f"corpus {suite.corpus} gives {ledger.questions:,} of the {suite.num_questions:,} cloze "
        "questions asked for",
        problems=[
            f"{ledger.documents_sampled:,} of {ledger.documents:,} documents searched"
            + ("" if (n := ledger.documents_packed) is None else f" ({n:,} are in CPT's pack)"),
            f"{ledger.spans_found:,} spans found",
            *(f"{number:,} spans dropped: {reason}" for reason, number in dropped),
        ],
        remedy="Nothing was written. Lower num_questions or num_distractors, raise max_documents, "
        "questions_per_document, max_span_documents or the pack's token_budget, name more"
        " span_kinds, or add text to the corpus.",
    )
