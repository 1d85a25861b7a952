"""Base class of a document filter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.ledger import TaskContamination

Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Dropped:
    """The document goes; the chain counts it under `reason`."""

    reason: str


class Filter(ABC):
    """Judges one document after the other, in order. The chain counts what comes in, goes out and
    is dropped, so a filter cannot lose a document without a counter."""

    name: ClassVar[str]
    reasons: ClassVar[tuple[str, ...]]
    """Why it drops documents; each is in the ledger, also when nothing was dropped for it."""

    @abstractmethod
    def take(self, record: Record) -> Record | Dropped:
        """The document that goes on (changed or not), or why it does not."""

    def finish(self) -> None:
        """No more documents come: raises what could only be said at the end."""
        return

    def counts(self) -> Mapping[str, int]:
        """What it changed or found, besides the documents dropped."""
        return {}

    def facts(self) -> Mapping[str, Fact]:
        """Settings and versions that decide what it does."""
        return {}

    def tasks(self) -> Sequence[TaskContamination]:
        """What the contamination check found."""
        return ()
