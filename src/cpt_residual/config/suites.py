"""The base class of suites, and the kinds that the package `suites` holds."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Self, Union

from cpt_residual.base_model import Frozen
from cpt_residual.config.cloze import ClozeQuestions
from cpt_residual.config.corpora import Corpus
from cpt_residual.config.measures import Measure
from cpt_residual.config.suite_tasks import AskedOf, HarnessTask, SuiteInputs, TaskFile, Workload

_PACKAGE = "cpt_residual.suites"


class SuiteBase(Frozen):
    """What an evaluation asks, what it has to read for that, and what the scores mean.

    A kind is a package below `suites`: its `__init__.py` has one subclass, with the package's name
    as `kind: Literal[...]`. Whatever is not overridden here is not needed. Plans import it: heavy
    libraries belong to `scoring.py`, which lm-eval imports when it reads the kind's yaml files.
    """

    @abstractmethod
    def measures(self, key: str) -> tuple[Measure, ...]:
        """What the suite named `key` measures."""

    @abstractmethod
    def workload(self, asked: AskedOf) -> Sequence[Workload]:
        """Estimates for the plan, one per task."""

    def without_words(self) -> Self:
        """The same questions without what only the report reads (no part of a fingerprint)."""
        return self

    # --- what is asked ---------------------------------------------------------------------------
    def task_files(self, key: str, given: SuiteInputs, turn_end: str) -> Iterator[TaskFile]:  # noqa: ARG002
        """Own tasks of the suite named `key`. turn_end: the token that closes a turn."""
        yield from ()

    def stock_tasks(self) -> Sequence[HarnessTask]:
        """Tasks of lm-eval."""
        return ()

    def asks_through_chat(self) -> bool:
        """Whether something is asked through the chat template."""
        return False

    # --- what it needs ---------------------------------------------------------------------------
    def world_probes(self) -> Sequence[str]:
        """Probes of the procedural world."""
        return ()

    def heldout_corpora(self) -> Sequence[str]:
        """Corpora whose held-out documents are read."""
        return ()

    def cloze_questions(self) -> ClozeQuestions | None:
        """Questions that the stage `probe` makes from a corpus."""
        return None

    def named_corpora(self) -> Iterator[tuple[str, str]]:
        """(field, corpus) of every corpus that the configuration names."""
        yield from ()

    def problems(self, corpora: Mapping[str, Corpus]) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """(field, what is wrong with it) for checks of several fields; all corpora are known."""
        yield from ()

    @classmethod
    def scorer_files(cls) -> tuple[Path, ...]:
        """Sources that decide about a score: the kind's `__init__.py`, which maps metrics to
        aggregates, `scoring.py` and yaml files."""
        folder = Path(str(sys.modules[cls.__module__].__file__)).parent
        patterns = ("__init__.py", "scoring.py", "*.yaml")
        return tuple(sorted(found for each in patterns for found in folder.glob(each)))


def suite_union() -> object:
    """The union of every kind that has a folder in `suites`, for a field of the schema."""
    folders = sorted(found.name for found in iter_modules(import_module(_PACKAGE).__path__))
    kinds = [_kind_of(import_module(f"{_PACKAGE}.{name}")) for name in folders]
    return Union[tuple(kinds)]  # noqa: UP007 (of a list that is not known before)


def _kind_of(module: ModuleType) -> type[SuiteBase]:
    (kind,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, SuiteBase)
        and value.__module__ == module.__name__
    )
    return kind
