"""From rare spans to cloze questions: the context before a span, the span, and look-alikes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cpt_residual.base_model import Frozen
from cpt_residual.config.cloze import ClozeQuestions, SpanKind
from cpt_residual.data.cloze.spans import (
    Span,
    lower_words,
    shape_of,
    starts_sentence,
    telling_words,
)

QUESTIONS_FILE = "questions.jsonl"
SPANS_PER_DOCUMENT = 16
"""At most so many spans of one document are kept in memory while a probe is built."""

_MIN_CONTEXT_CHARACTERS = 32


class Question(Frozen):
    """One line of `questions.jsonl`. Line `document` (from 0) of the corpus' `documents.jsonl`
    holds `context`, then `choices[answer]` (its space included), the span of which begins at
    character `offset`. `span_documents`: how many training documents hold the span."""

    id: int
    document: int
    offset: int
    span_kind: SpanKind
    shape: str
    span_documents: int
    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(slots=True)
class Candidate:
    """A span that might be asked for. `rank` is seeded: the lowest are asked first. `documents`:
    numbers of the training documents that hold it (one too many means: too many)."""

    span: Span
    key: str
    document: int
    rank: int
    documents: list[int] = field(default_factory=list[int])


def context_before(text: str, span: Span, *, max_characters: int) -> str:
    """The text before `span` without the space next to it, from a word's beginning on."""
    end = span.start - 1
    start = max(0, end - max_characters)
    if start and not text[start - 1].isspace():
        while start < end and not text[start].isspace():
            start += 1
    return text[start:end].lstrip() if start else text[:end]


def why_unusable(text: str, span: Span, *, max_characters: int) -> str | None:
    """Why no question can be made of `span` where it stands; None when one can."""
    if span.start < 2 or text[span.start - 1] != " " or text[span.start - 2].isspace():
        return "not after a single space"
    if span.kind == "name" and starts_sentence(text, span.start):
        return "first words of a sentence"
    context = context_before(text, span, max_characters=max_characters)
    if len(context) < min(_MIN_CONTEXT_CHARACTERS, max_characters // 2):
        return "too little context"
    if telling_words(span.text) & set(lower_words(context)):
        return "its words stand in the context"
    return None


def choose_questions(
    candidates: Sequence[Candidate], suite: ClozeQuestions, read_text: Callable[[int], str]
) -> tuple[list[Question], Counter[str]]:
    """Questions in the order of their documents, and why the other candidates were left.

    All candidates are rare in the corpus and unknown to the references, and so the wrong choices,
    drawn from them, are as rare as the right one: how common a span is tells nothing.
    """
    alike = _LookAlikes(candidates)
    left: Counter[str] = Counter()
    asked: Counter[int] = Counter()
    questions: list[Question] = []
    for candidate in sorted(candidates, key=lambda each: each.rank):
        if len(questions) == suite.num_questions:
            left["not needed"] += 1
            continue
        if asked[candidate.document] == suite.questions_per_document:
            left["its document is asked about already"] += 1
            continue
        context = context_before(
            read_text(candidate.document), candidate.span, max_characters=suite.context_characters
        )
        wrong = alike.of(candidate, context, suite.num_distractors)
        if len(wrong) < suite.num_distractors:
            left["too few look-alikes"] += 1
            continue
        asked[candidate.document] += 1
        questions.append(_question(candidate, context, wrong))
    questions.sort(key=lambda question: (question.document, question.offset))
    numbered = [each.model_copy(update={"id": number}) for number, each in enumerate(questions)]
    return numbered, left


class _LookAlikes:
    """Candidates by kind, shape and length in bytes."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._by_shape: dict[tuple[str, str], dict[int, list[Candidate]]] = {}
        for candidate in sorted(candidates, key=lambda each: each.rank):
            lengths = self._by_shape.setdefault(_shape(candidate), {})
            lengths.setdefault(_num_bytes(candidate), []).append(candidate)

    def of(self, candidate: Candidate, context: str, num: int) -> list[str]:
        """Up to `num` spans of its shape, the nearest in length first; none stands in its document
        or has a word in common with `context`."""
        said = set(lower_words(context))
        found: list[str] = []
        for other in self._near(candidate):
            if len(found) == num:
                break
            if candidate.document in other.documents or telling_words(other.span.text) & said:
                continue
            found.append(other.span.text)
        return found

    def _near(self, candidate: Candidate) -> Iterator[Candidate]:
        lengths, own = self._by_shape[_shape(candidate)], _num_bytes(candidate)
        side = 1 if candidate.rank % 2 else -1
        for length in sorted(lengths, key=lambda each: (abs(each - own), side * each)):
            group = lengths[length]
            first = candidate.rank // 2 % len(group)
            yield from group[first:]
            yield from group[:first]


def _question(candidate: Candidate, context: str, wrong: Sequence[str]) -> Question:
    choices = [candidate.span.text, *wrong]
    random.Random(candidate.rank).shuffle(choices)
    return Question(
        id=0,
        document=candidate.document,
        offset=candidate.span.start,
        span_kind=candidate.span.kind,
        shape=shape_of(candidate.span.text),
        span_documents=len(candidate.documents),
        context=context,
        choices=tuple(f" {choice}" for choice in choices),
        answer=choices.index(candidate.span.text),
    )


def _shape(candidate: Candidate) -> tuple[str, str]:
    return candidate.span.kind, shape_of(candidate.span.text)


def _num_bytes(candidate: Candidate) -> int:
    return len(candidate.span.text.encode())
