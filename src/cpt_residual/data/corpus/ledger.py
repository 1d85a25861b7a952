"""`ledger.json` of a corpus: every document read, kept or dropped, by reason."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.validation import field_problems
from cpt_residual.data.documents.file_names import LEDGER_FILE
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.readers.base import FileLedger, ReadLedger
from cpt_residual.errors import CorruptArtifactError


class SplitLedger(Frozen):
    """The documents that were given = documents + heldout_documents + heldout_copies_dropped, and
    so their characters."""

    documents: int
    characters: int
    heldout_documents: int
    heldout_characters: int
    heldout_copies_dropped: int
    heldout_copies_dropped_characters: int

    @property
    def documents_given(self) -> int:
        return self.documents + self.heldout_documents + self.heldout_copies_dropped

    @property
    def characters_given(self) -> int:
        return self.characters + self.heldout_characters + self.heldout_copies_dropped_characters


class CorpusLedger(SplitLedger):
    """documents_read = those that the filters dropped + documents + heldout_documents +
    heldout_copies_dropped. For characters the same, with what the filters added to documents that
    stayed on the left. Rows of the sources = documents_read + bad_rows_skipped.

    first_bad_rows, files: see `ReadLedger`; filters: in the order they were applied
    (`passes` in the file).
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    documents_read: int
    characters_read: int
    bad_rows_skipped: int
    first_bad_rows: tuple[str, ...]
    files: tuple[FileLedger, ...]
    filters: tuple[FilterLedger, ...] = Field(
        validation_alias="passes", serialization_alias="passes"
    )

    @classmethod
    def of(
        cls, read: ReadLedger, filters: tuple[FilterLedger, ...], split: SplitLedger
    ) -> CorpusLedger:
        """The three parts as one; that nothing got lost between them is asserted."""
        ledger = cls(
            documents_read=read.documents,
            characters_read=read.characters,
            bad_rows_skipped=read.bad_rows_skipped,
            first_bad_rows=read.first_bad_rows,
            files=read.files,
            filters=filters,
            **split.model_dump(),
        )
        lost = ledger.imbalances()
        assert not lost, lost
        return ledger

    def imbalances(self) -> list[str]:
        """Where documents or characters got lost between the files, the filters and the split into
        kept and held out; nothing in a ledger that this package wrote."""
        before, left = "what was read", (self.documents_read, self.characters_read)
        wrong: list[str] = []
        for each in self.filters:
            into = (each.documents_in, each.characters_in)
            wrong += _unequal((before, left), (f"into {each.name}", into))
            went = (
                each.documents_out + sum(drop.documents for drop in each.dropped),
                each.characters_out + sum(drop.characters for drop in each.dropped),
            )
            came = (each.documents_in, each.characters_in + each.characters_added)
            wrong += _unequal(
                (f"into {each.name}", came), (f"out of {each.name} and dropped", went)
            )
            before, left = f"out of {each.name}", (each.documents_out, each.characters_out)
        given = (self.documents_given, self.characters_given)
        return wrong + _unequal((before, left), ("kept, held out and copies of these", given))


_Station = tuple[str, tuple[int, int]]
"""Where documents are, and how many with how many characters."""


def _unequal(before: _Station, after: _Station) -> list[str]:
    return [
        f"{unit}: {before[0]} {one:,}, {after[0]} {other:,}"
        for unit, one, other in zip(("documents", "characters"), before[1], after[1], strict=True)
        if one != other
    ]


def read_corpus_ledger(path: Path) -> CorpusLedger:
    """The ledger of the corpus in directory `path`. Raises CorruptArtifactError when it is none of
    this version."""
    try:
        return CorpusLedger.model_validate_json((path / LEDGER_FILE).read_bytes())
    except OSError as error:
        problems = [str(error)]
    except ValidationError as error:
        problems = field_problems(error)
    raise CorruptArtifactError(
        f"corpus {path} has no readable ledger",
        problems=[f"{LEDGER_FILE}: {problem}" for problem in problems[:8]],
        remedy="Delete the artifact and run again; it will be rebuilt.",
    )
