"""The knowledge probe: cloze questions about rare spans of a corpus (see data/cloze/build.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen, Name, PositiveInt
from cpt_residual.config.measures import Measure

SpanKind = Literal["name", "number", "date"]


class ClozeSuite(Frozen):
    """Which span of `corpus` comes next, the true one or one of `num_distractors` look-alikes from
    other documents? Spans stand in `min_span_documents` to `max_span_documents` training documents
    of `corpus` and in no document of the references."""

    kind: Literal["cloze"]
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

    def measures(self, key: str) -> tuple[Measure, ...]:
        """What the suite named `key` measures."""
        return (
            Measure(
                task=cloze_task_name(key),
                metric="accuracy",
                label="rare entities of the new text, cloze questions",
                short="cloze",
                role="new_knowledge",
                chance=self.chance,
                num_prompts=self.num_questions,
            ),
        )

    def without_words(self) -> ClozeSuite:
        """The same questions without what only the report reads (nothing here)."""
        return self


def cloze_task_name(suite: str) -> str:
    """The lm-eval task of a `cloze` suite; it begins with `cloze`."""
    return suite if suite.startswith("cloze") else f"cloze_{suite}"
