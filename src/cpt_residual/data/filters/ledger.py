"""Counts of one filter, part of the ledger of a corpus."""

from __future__ import annotations

from cpt_residual.base_model import Frozen


class Drop(Frozen):
    """The documents that one filter dropped for one reason; characters as they came in."""

    reason: str
    documents: int
    characters: int


class Match(Frozen):
    """Where document number `document` (from 1, as the filter met them) and a question share words;
    `words` as they were compared."""

    document: int
    words: str


class TaskContamination(Frozen):
    """One task of the evaluation, looked for in the corpus.

    questions = questions_checked + questions_too_short + questions_of_shared_wording.
    questions_found: those of which the corpus holds an n-gram; documents: those that hold one of a
    question of this task (a document counts for every task it meets); ngrams: the different ones
    that were looked for; ngrams_shared: those left out, as wording that too many questions share.
    """

    task: str
    questions: int
    questions_checked: int
    questions_too_short: int
    questions_of_shared_wording: int
    questions_found: int
    documents: int
    ngrams: int
    ngrams_shared: int
    examples: tuple[Match, ...] = ()


class FilterLedger(Frozen):
    """Where every document and every character went:

    documents_in = documents_out + the documents of `dropped`;
    characters_in + characters_added = characters_out + the characters of `dropped`.

    characters_added: net, by changes to the documents that stay (negative where more went).
    counts: of what the filter changed or found besides. facts: settings and versions that decide.
    """

    name: str
    documents_in: int
    documents_out: int
    characters_in: int
    characters_out: int
    characters_added: int
    dropped: tuple[Drop, ...]
    counts: dict[str, int]
    facts: dict[str, str | int | float]
    tasks: tuple[TaskContamination, ...] = ()
