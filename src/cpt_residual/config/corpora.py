"""Where text comes from: parts of the procedural world, the user's own files, hub data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.config.frozen import Frozen, PositiveInt

__all__ = ["Corpus", "HubCorpus", "LocalCorpus", "World", "WorldCorpus"]


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
    """The user's own files: JSON lines (`.jsonl`) or plain text (`.txt`), files or globs."""

    kind: Literal["local"]
    files: Annotated[list[str], Field(min_length=1)]
    text_field: str = "text"
    heldout_documents: Annotated[int, Field(ge=0)] = 0


class HubCorpus(Frozen):
    """A data set of the Hugging Face hub, read by streaming, pinned to a commit."""

    kind: Literal["hub"]
    repo: str
    config: str | None = None
    split: str = "train"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    text_field: str = "text"
    heldout_documents: Annotated[int, Field(ge=0)] = 0
    max_characters: PositiveInt


Corpus = Annotated[WorldCorpus | LocalCorpus | HubCorpus, Field(discriminator="kind")]
