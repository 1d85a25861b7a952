"""The knowledge probe: which cloze questions are asked about rare spans of a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen, Name, PositiveInt

SpanKind = Literal["name", "number", "date"]


class ClozeQuestions(Frozen):
    """Which span of `corpus` comes next, the true one or one of `num_distractors` look-alikes from
    other documents? Spans stand in `min_span_documents` to `max_span_documents` training documents
    of `corpus` and in no document of the references."""

    corpus: Name  # questions come from its training documents, never from those held out
    references: list[Name] = Field(
        default_factory=list[str]
    )  # corpora in which no asked span may occur
    heldout_is_reference: bool = True  # nor in the held-out documents of `corpus`, if it has any
    num_questions: PositiveInt
    num_distractors: PositiveInt = 3
    span_kinds: Annotated[list[SpanKind], Field(min_length=1)] = Field(
        default_factory=lambda: list[SpanKind](("name", "number", "date"))
    )
    max_documents: PositiveInt = 10_000  # asked about: the first so many that a pack reads
    questions_per_document: PositiveInt = 1
    min_span_documents: PositiveInt = 1
    max_span_documents: PositiveInt = 20
    context_characters: Annotated[int, Field(ge=32)] = 400  # at most so many before the span

    @property
    def chance(self) -> float:
        """Accuracy of a model for which all choices are alike."""
        return 1 / (1 + self.num_distractors)
