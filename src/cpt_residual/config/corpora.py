"""Corpus settings: procedural world, local files, hub data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Count, Frozen, Line, PositiveInt
from cpt_residual.config.filters import Filters

BadLines = Literal["fail", "skip"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class World(Frozen):
    """Sizes of the procedural world of the tiny experiments (counts; see data/world)."""

    num_general_documents: PositiveInt
    num_new_documents: PositiveInt
    num_instructions: PositiveInt
    num_heldout_documents: PositiveInt
    num_donor_documents: PositiveInt
    num_prompts_per_type: PositiveInt


class WorldCorpus(Frozen):
    """One part of the procedural world, e.g. `new_domain` (needs the top-level `world`)."""

    kind: Literal["world"]
    part: Literal[
        "general",
        "new_domain",
        "donor_general",
        "instructions",
        "donor_instructions",
        "tokenizer_text",
    ]


class LocalCorpus(Frozen):
    """The user's own files: names, globs or folders (with all files of known kinds below them).

    JSON lines, CSV and Parquet hold one document a row, in `text_field` (`content.text` is the
    field `text` of the object or struct `content`); a `.txt` file is one document. JSON lines, CSV
    and text may be compressed (`.gz`, `.zst`).
    bad_lines: a line or row that holds no document is an error (`fail`), or is left out and
    counted (`skip`). content_sha256: what the files have to be; the error of a mismatch says what
    they are.
    """

    kind: Literal["local"]
    files: Annotated[list[Line], Field(min_length=1)]
    content_sha256: Sha256 | None = None
    text_field: Line = "text"
    bad_lines: BadLines = "fail"
    heldout_documents: Count = 0
    filters: Filters = Filters()


class HubCorpus(Frozen):
    """A data set of the Hugging Face hub, read by streaming, pinned to a commit.

    max_characters: reading stops before the document that would pass it; filters come after.
    """

    kind: Literal["hub"]
    repo: Line
    config: Line | None = None
    split: Line = "train"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    text_field: Line = "text"
    bad_lines: BadLines = "fail"
    heldout_documents: Count = 0
    max_characters: PositiveInt
    filters: Filters = Filters()


Corpus = Annotated[WorldCorpus | LocalCorpus | HubCorpus, Field(discriminator="kind")]

PARTS_WITH_HELDOUT = ("general", "new_domain")
"""Parts of the world that come with held-out documents."""


def holds_dialogues(corpus: Corpus) -> bool:
    """Whether `corpus` holds chats, not text."""
    dialogues = ("instructions", "donor_instructions")
    return isinstance(corpus, WorldCorpus) and corpus.part in dialogues


def lacks_heldout(corpus: Corpus) -> str:
    """Why `corpus` has no held-out documents; empty if it has."""
    if not isinstance(corpus, WorldCorpus):
        return "" if corpus.heldout_documents else "its heldout_documents is 0"
    if corpus.part in PARTS_WITH_HELDOUT:
        return ""
    names = ", ".join(PARTS_WITH_HELDOUT)
    return f"part {corpus.part} has no held-out documents; only {names} have"
