"""Counts of a corpus read, part of its ledger."""

from __future__ import annotations

from cpt_residual.base_model import Frozen


class FileLedger(Frozen):
    """One file: rows = documents + bad_rows_skipped. kind: how its name ends."""

    kind: str
    sha256: str
    documents: int
    characters: int
    bad_rows_skipped: int


class ReadLedger(Frozen):
    """What was read, before any filter.

    first_bad_rows: where the first rows were that `bad_lines: skip` left out, and why; a file is
    named by its number in `files`, from 1, as the ledger depends on the content of files alone.
    files: empty for a hub data set.
    """

    documents: int
    characters: int
    bad_rows_skipped: int
    first_bad_rows: tuple[str, ...] = ()
    files: tuple[FileLedger, ...] = ()
