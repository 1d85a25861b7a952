"""Where every document of a corpus went: `ledger.json` of its artifact."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from cpt_residual.base_model import Frozen
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.readers.ledger import FileLedger, ReadLedger


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
        documents, characters = read.documents, read.characters
        for each in filters:
            assert each.documents_in == documents, f"documents got lost before {each.name}"
            assert each.characters_in == characters, f"characters got lost before {each.name}"
            documents, characters = each.documents_out, each.characters_out
        assert split.documents_given == documents, "documents got lost before the split"
        assert split.characters_given == characters, "characters got lost before the split"
        return cls(
            documents_read=read.documents,
            characters_read=read.characters,
            bad_rows_skipped=read.bad_rows_skipped,
            first_bad_rows=read.first_bad_rows,
            files=read.files,
            filters=filters,
            **split.model_dump(),
        )
