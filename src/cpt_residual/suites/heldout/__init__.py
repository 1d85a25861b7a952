"""Likelihood of held-out documents: bits per byte, and perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Name, PositiveInt
from cpt_residual.config.corpora import Corpus, lacks_heldout
from cpt_residual.config.measures import Measure, MeasureRole
from cpt_residual.config.suite_tasks import (
    AskedOf,
    SuiteInputs,
    TaskFile,
    Workload,
    existing_file,
)
from cpt_residual.config.suites import SuiteBase

_TEMPLATE = Path(__file__).parent / "heldout.yaml"
_WORLD_DOCUMENT_TOKENS = 60
_DOCUMENT_TOKENS = 700


class HeldoutSuite(SuiteBase):
    """Bits per byte of held-out documents of the named corpora (lm-eval rolling likelihood).
    `new_domain`: the one of them that CPT trains on, `general`: the one it should not forget."""

    kind: Literal["heldout"]
    corpora: Annotated[list[Name], Field(min_length=1)]
    max_documents: PositiveInt
    new_domain: Name | None = None
    general: Name | None = None

    def measures(self, key: str) -> tuple[Measure, ...]:
        del key
        roles: dict[str | None, MeasureRole] = {
            self.general: "general_text",
            self.new_domain: "new_text",
        }
        return tuple(
            measure
            for corpus in self.corpora
            for measure in _likelihood_measures(corpus, roles.get(corpus, "other"))
        )

    def workload(self, asked: AskedOf) -> list[Workload]:
        return [
            Workload(
                self.max_documents,
                _WORLD_DOCUMENT_TOKENS if corpus in asked.generated else _DOCUMENT_TOKENS,
            )
            for corpus in self.corpora
        ]

    def without_words(self) -> HeldoutSuite:
        return self.model_copy(update={"new_domain": None, "general": None})

    def task_files(self, key: str, given: SuiteInputs, turn_end: str) -> Iterator[TaskFile]:
        del key, turn_end
        for corpus in self.corpora:
            documents = given.heldout.get(corpus)
            yield TaskFile(
                task=_task_name(corpus),
                template=_TEMPLATE,
                documents=existing_file(documents, f"held-out text of '{corpus}'"),
                arguments={"max_documents": self.max_documents},
                metrics={
                    "bits_per_byte": "bits_per_byte",
                    "token_perplexity": "perplexity",
                    "word_perplexity": "perplexity",
                },
            )

    def heldout_corpora(self) -> list[str]:
        return self.corpora

    def named_corpora(self) -> Iterator[tuple[str, str]]:
        for index, corpus in enumerate(self.corpora):
            yield f"corpora[{index}]", corpus
        for field, corpus in (("new_domain", self.new_domain), ("general", self.general)):
            if corpus is not None:
                yield field, corpus

    def problems(self, corpora: Mapping[str, Corpus]) -> Iterator[tuple[str, str]]:
        for index, name in enumerate(self.corpora):
            reason = lacks_heldout(corpora[name])
            if reason:
                yield f"corpora[{index}]", f"{name}: {reason}"


def _task_name(corpus: str) -> str:
    return f"heldout_{corpus}"


def _likelihood_measures(corpus: str, role: MeasureRole) -> tuple[Measure, ...]:
    words, brief = {
        "new_text": ("new domain", "new"),
        "general_text": ("general text", "general"),
    }.get(role, (corpus, corpus))
    bits = Measure(
        task=_task_name(corpus),
        metric="bits_per_byte",
        label=f"bits per byte, {words}",
        short=f"bits/byte {brief}",
        role=role,
        unit="bits_per_byte",
        higher_is_better=False,
        paired=False,
    )
    perplexity = Measure(
        task=_task_name(corpus),
        metric="token_perplexity",
        or_metrics=("word_perplexity",),
        label=f"perplexity, {words}",
        short=f"ppl {brief}",
        role=role,
        aspect="perplexity",
        unit="perplexity",
        higher_is_better=False,
        paired=False,
    )
    return bits, perplexity
