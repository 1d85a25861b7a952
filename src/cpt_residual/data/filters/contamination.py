"""Filter: n-gram overlap with evaluation prompts (as in Brown et al. 2020, app. C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from cpt_residual.config.filters import Contamination
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Fact, Filter
from cpt_residual.data.filters.ledger import Match, TaskContamination
from cpt_residual.data.filters.ngrams import NgramIndex, Occurrence
from cpt_residual.data.filters.references import References
from cpt_residual.data.filters.words import folded_words
from cpt_residual.errors import CorpusError

_EXAMPLES_PER_TASK = 5


class ContaminationFilter(Filter):
    """What it finds does not depend on the order of the documents, but for the examples. `report`
    lets every document pass; `drop` drops those in which it finds something.

    Memory: the index (`NgramIndex`) and the words of all questions while it is built.
    """

    name: ClassVar[str] = "contamination"
    reasons: ClassVar[tuple[str, ...]] = ("holds_a_question",)

    def __init__(self, settings: Contamination, references: References) -> None:
        self._settings = settings
        self._tasks: dict[str, int] = {}
        owners: list[int] = []
        questions: list[list[str]] = []
        for reference in references:
            owners.append(self._tasks.setdefault(reference.task, len(self._tasks)))
            questions.append(folded_words(reference.text))
        if not questions:
            raise CorpusError(
                "contamination check: the evaluation's suites have no questions to look for",
                remedy="Nothing was checked. Take `filters.contamination` out, or evaluate a suite "
                "that asks something.",
            )
        self._owners = owners
        self._index = NgramIndex(questions, owners, settings)
        self._num_documents = 0
        self._num_contaminated = 0
        self._found: set[int] = set()
        self._documents = dict.fromkeys(self._tasks.values(), 0)
        self._examples: dict[int, list[Match]] = {task: [] for task in self._tasks.values()}

    def take(self, record: Record) -> Record | Dropped:
        self._num_documents += 1
        words = folded_words(record.text)
        occurrences = self._index.find(words)
        if not occurrences:
            return record
        self._num_contaminated += 1
        self._note(occurrences, words)
        return Dropped("holds_a_question") if self._settings.action == "drop" else record

    def _note(self, occurrences: Sequence[Occurrence], words: Sequence[str]) -> None:
        tasks: set[int] = set()
        for each in occurrences:
            self._found.add(each.question)
            task = self._owners[each.question]
            if task in tasks:
                continue
            tasks.add(task)
            self._documents[task] += 1
            if len(self._examples[task]) < _EXAMPLES_PER_TASK:
                shared = " ".join(words[each.start : each.end])
                self._examples[task].append(Match(document=self._num_documents, words=shared))

    def counts(self) -> Mapping[str, int]:
        return {
            "documents_contaminated": self._num_contaminated,
            "questions": len(self._owners),
            "questions_found": len(self._found),
        }

    def facts(self) -> Mapping[str, Fact]:
        return self._settings.model_dump()

    def tasks(self) -> Sequence[TaskContamination]:
        return tuple(self._task(name, number) for name, number in sorted(self._tasks.items()))

    def _task(self, name: str, number: int) -> TaskContamination:
        own = {at for at, owner in enumerate(self._owners) if owner == number}
        num_checked, num_short = len(own & self._index.checked), len(own & self._index.too_short)
        return TaskContamination(
            task=name,
            questions=len(own),
            questions_checked=num_checked,
            questions_too_short=num_short,
            questions_of_shared_wording=len(own) - num_checked - num_short,
            questions_found=len(own & self._found),
            documents=self._documents[number],
            ngrams=self._index.num_ngrams[number],
            ngrams_shared=self._index.num_shared[number],
            examples=tuple(self._examples[number]),
        )
