"""The filter chain, with counts of documents and characters in, out and dropped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from cpt_residual.config.filters import Filters
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.base import Dropped, Filter
from cpt_residual.data.filters.ledger import Drop, FilterLedger
from cpt_residual.data.filters.references import References
from cpt_residual.errors import CorpusError


class FilterChain:
    """The filters that `filters` asks for, in the order of its fields; without any, documents go
    through as they are. Used once.

    One document is in memory at a time, besides what each filter says that it remembers. Raises
    CorpusError when the filters leave nothing of what they were given.
    """

    def __init__(self, filters: Filters, *, references: References | None = None) -> None:
        """references: the questions of the evaluation, for the contamination check."""
        self._steps = [_Step(each) for each in _made(filters, references)]

    def __call__(self, records: Iterable[Record]) -> Iterator[Record]:
        """The documents that remain, in the order they came."""
        num_in = num_out = 0
        for record in records:
            num_in += 1
            remaining = self._through(record)
            if remaining is not None:
                num_out += 1
                yield remaining
        for step in self._steps:
            step.finish()
        if num_in and not num_out:
            raise CorpusError(
                f"the filters left none of {num_in:,} documents",
                problems=[line for step in self._steps for line in step.lines()],
                remedy="There is nothing to train on: loosen these filters, or name other files.",
            )

    def ledger(self) -> tuple[FilterLedger, ...]:
        """One entry per filter, in their order; complete once all documents went through."""
        return tuple(step.ledger() for step in self._steps)

    def _through(self, record: Record) -> Record | None:
        remaining: Record | None = record
        for step in self._steps:
            if remaining is None:
                break
            remaining = step.take(remaining)
        return remaining


def library_versions(filters: Filters) -> dict[str, str]:
    """The libraries that decide which documents remain, with their versions, and the version of
    Unicode where its tables do (it comes with Python): part of a recipe."""
    used = {"py3langid": filters.language, "rensa": filters.near_dedup}
    found = {name: version(name) for name, settings in used.items() if settings is not None}
    by_unicode = (filters.normalise, filters.exact_dedup, filters.near_dedup, filters.contamination)
    if any(settings is not None for settings in by_unicode):
        found["unicode"] = unicodedata.unidata_version
    return found


def _made(filters: Filters, references: References | None) -> Iterator[Filter]:
    """The filters, heavy libraries and all, each imported only where it is asked for."""
    if filters.normalise is not None:
        from cpt_residual.data.filters.normalise import NormaliseFilter

        yield NormaliseFilter(filters.normalise)
    if filters.date is not None:
        from cpt_residual.data.filters.date_range import DateRangeFilter

        yield DateRangeFilter(filters.date)
    if filters.length is not None:
        from cpt_residual.data.filters.length import LengthFilter

        yield LengthFilter(filters.length)
    if filters.language is not None:
        from cpt_residual.data.filters.language import LanguageFilter

        yield LanguageFilter(filters.language)
    if filters.exact_dedup is not None:
        from cpt_residual.data.filters.exact_dedup import ExactDedupFilter

        yield ExactDedupFilter(filters.exact_dedup)
    if filters.near_dedup is not None:
        from cpt_residual.data.filters.near_dedup import NearDedupFilter

        yield NearDedupFilter(filters.near_dedup)
    if filters.contamination is not None:
        from cpt_residual.data.filters.contamination import ContaminationFilter

        yield ContaminationFilter(filters.contamination, references or ())


class _Step:
    """One filter and its counters."""

    def __init__(self, one: Filter) -> None:
        self._pass = one
        self._documents_in = self._documents_out = 0
        self._characters_in = self._characters_out = 0
        self._dropped = {reason: [0, 0] for reason in one.reasons}

    def take(self, record: Record) -> Record | None:
        self._documents_in += 1
        self._characters_in += len(record.text)
        outcome = self._pass.take(record)
        if isinstance(outcome, Dropped):
            counts = self._dropped[outcome.reason]
            counts[0] += 1
            counts[1] += len(record.text)
            return None
        self._documents_out += 1
        self._characters_out += len(outcome.text)
        return outcome

    def finish(self) -> None:
        self._pass.finish()

    def lines(self) -> Iterator[str]:
        """What was dropped, for a message."""
        for reason, (documents, _) in self._dropped.items():
            if documents:
                yield f"{self._pass.name}: {documents:,} dropped ({reason.replace('_', ' ')})"

    def ledger(self) -> FilterLedger:
        dropped = [
            Drop(reason=reason, documents=documents, characters=characters)
            for reason, (documents, characters) in self._dropped.items()
        ]
        lost = sum(drop.characters for drop in dropped)
        assert self._documents_in == self._documents_out + sum(drop.documents for drop in dropped)
        return FilterLedger(
            name=self._pass.name,
            documents_in=self._documents_in,
            documents_out=self._documents_out,
            characters_in=self._characters_in,
            characters_out=self._characters_out,
            characters_added=self._characters_out + lost - self._characters_in,
            dropped=tuple(dropped),
            counts=dict(self._pass.counts()),
            facts=dict(self._pass.facts()),
            tasks=tuple(self._pass.tasks()),
        )
