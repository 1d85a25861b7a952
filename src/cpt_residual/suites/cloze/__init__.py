"""Cloze questions about rare spans of a corpus: what a model learned of new text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from cpt_residual.config.cloze import ClozeQuestions
from cpt_residual.config.corpora import Corpus, holds_dialogues, lacks_heldout
from cpt_residual.config.measures import Measure
from cpt_residual.config.suite_tasks import (
    AskedOf,
    SuiteInputs,
    TaskFile,
    Workload,
    existing_file,
)
from cpt_residual.config.suites import SuiteBase

_TEMPLATE = Path(__file__).parent / "cloze.yaml"
_CHARACTERS_PER_TOKEN = 4
_SPAN_TOKENS = 4


class ClozeSuite(ClozeQuestions, SuiteBase):
    """Cloze questions, which the stage `probe` makes; asked as they stand, without a template."""

    kind: Literal["cloze"]

    def measures(self, key: str) -> tuple[Measure, ...]:
        return (
            Measure(
                task=_task_name(key),
                metric="accuracy",
                label="rare entities of the new text, cloze questions",
                short="cloze",
                role="new_knowledge",
                chance=self.chance,
                num_prompts=self.num_questions,
            ),
        )

    def workload(self, asked: AskedOf) -> list[Workload]:
        del asked
        tokens = self.context_characters // _CHARACTERS_PER_TOKEN + _SPAN_TOKENS
        return [Workload(self.num_questions * (1 + self.num_distractors), tokens)]

    def task_files(self, key: str, given: SuiteInputs, turn_end: str) -> Iterator[TaskFile]:
        del turn_end
        yield TaskFile(
            task=_task_name(key),
            template=_TEMPLATE,
            documents=existing_file(given.questions.get(key), f"the cloze questions of '{key}'"),
            metrics={
                "accuracy": "mean",
                "accuracy_per_byte": "mean",
                "recalled": "mean",
                "target_bits_per_byte": "bits_per_byte",
                "chance": "mean",
            },
            chat=False,
        )

    def cloze_questions(self) -> ClozeQuestions:
        return self

    def named_corpora(self) -> Iterator[tuple[str, str]]:
        yield "corpus", self.corpus
        for index, corpus in enumerate(self.references):
            yield f"references[{index}]", corpus

    def problems(self, corpora: Mapping[str, Corpus]) -> Iterator[tuple[str, str]]:
        corpus = corpora[self.corpus]
        if holds_dialogues(corpus):
            yield "corpus", f"{self.corpus}: holds dialogues; questions are asked about text"
        if self.min_span_documents > self.max_span_documents:
            limit = f"must not be above max_span_documents={self.max_span_documents}"
            yield "min_span_documents", f"{self.min_span_documents}: {limit}"
        if self.corpus in self.references:
            yield "references", f"{self.corpus}: the corpus itself knows all that is asked"
        if not self.references and (not self.heldout_is_reference or lacks_heldout(corpus)):
            remedy = f"name a corpus, or hold documents of {self.corpus} out (heldout_is_reference)"
            yield "references", f"empty: nothing tells new knowledge from old: {remedy}"


def _task_name(suite: str) -> str:
    """The task's name in results; it begins with `cloze`."""
    return suite if suite.startswith("cloze") else f"cloze_{suite}"
