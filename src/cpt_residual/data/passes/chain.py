"""The passes one after the other, every document and character counted on the way."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from cpt_residual.config.passes import Passes
from cpt_residual.data.passes.ledger import Drop, PassLedger
from cpt_residual.data.passes.one import Dropped, Pass
from cpt_residual.data.passes.references import References
from cpt_residual.data.records import Record
from cpt_residual.errors import CorpusError


class PassChain:
    """The passes that `passes` asks for, in the order of its fields; without any, documents go
    through as they are. Used once.

    One document is in memory at a time, besides what each pass says that it remembers. Raises
    CorpusError when the passes leave nothing of what they were given.
    """

    def __init__(self, passes: Passes, *, references: References | None = None) -> None:
        """references: the questions of the evaluation, for the contamination check."""
        self._steps = [_Step(each) for each in _made(passes, references)]

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
                f"the passes left none of {num_in:,} documents",
                problems=[line for step in self._steps for line in step.lines()],
                remedy="There is nothing to train on: loosen these passes, or name other files.",
            )

    def ledger(self) -> tuple[PassLedger, ...]:
        """One entry per pass, in their order; complete once all documents went through."""
        return tuple(step.ledger() for step in self._steps)

    def _through(self, record: Record) -> Record | None:
        remaining: Record | None = record
        for step in self._steps:
            if remaining is None:
                break
            remaining = step.take(remaining)
        return remaining


def library_versions(passes: Passes) -> dict[str, str]:
    """The libraries that decide which documents remain, with their versions, and the version of
    Unicode where its tables do (it comes with Python): part of a recipe."""
    used = {"py3langid": passes.language, "rensa": passes.near_dedup}
    found = {name: version(name) for name, settings in used.items() if settings is not None}
    by_unicode = (passes.normalise, passes.exact_dedup, passes.near_dedup, passes.contamination)
    if any(settings is not None for settings in by_unicode):
        found["unicode"] = unicodedata.unidata_version
    return found


def _made(passes: Passes, references: References | None) -> Iterator[Pass]:
    """The passes, heavy libraries and all, each imported only where it is asked for."""
    if passes.normalise is not None:
        from cpt_residual.data.passes.normalise import NormalisePass

        yield NormalisePass(passes.normalise)
    if passes.date is not None:
        from cpt_residual.data.passes.date_range import DateRangePass

        yield DateRangePass(passes.date)
    if passes.length is not None:
        from cpt_residual.data.passes.length import LengthPass

        yield LengthPass(passes.length)
    if passes.language is not None:
        from cpt_residual.data.passes.language import LanguagePass

        yield LanguagePass(passes.language)
    if passes.exact_dedup is not None:
        from cpt_residual.data.passes.exact_dedup import ExactDedupPass

        yield ExactDedupPass(passes.exact_dedup)
    if passes.near_dedup is not None:
        from cpt_residual.data.passes.near_dedup import NearDedupPass

        yield NearDedupPass(passes.near_dedup)
    if passes.contamination is not None:
        from cpt_residual.data.passes.contamination import ContaminationPass

        yield ContaminationPass(passes.contamination, references or ())


class _Step:
    """One pass and its counters."""

    def __init__(self, one: Pass) -> None:
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

    def ledger(self) -> PassLedger:
        dropped = [
            Drop(reason=reason, documents=documents, characters=characters)
            for reason, (documents, characters) in self._dropped.items()
        ]
        lost = sum(drop.characters for drop in dropped)
        assert self._documents_in == self._documents_out + sum(drop.documents for drop in dropped)
        return PassLedger(
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
