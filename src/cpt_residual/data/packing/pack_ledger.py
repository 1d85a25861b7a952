"""The ledger of a pack: `pack.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import ConfigDict, Field

from cpt_residual.base_model import Frozen
from cpt_residual.config.packs import MAX_SOURCES
from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import CompatibilityError, CorruptArtifactError

FORMAT_VERSION = 2
"""Of the files of a pack. 2: `sources.npy`, marks and phases in the ledger, continuations in any
column."""

LEDGER_FILE = "pack.json"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class AddedTokenUse(Frozen):
    """In how many of the documents read an added token stands, and how often. Of a special token
    its text is meant, of another its id (in dialogues with those that the template writes)."""

    id: Count
    documents: Positive
    times: Positive


class AddedToken(Frozen):
    """An added token that stands in some document, and what its text was encoded as: special ones
    stay text, others become their id, as in the released model's own training."""

    id: Count
    token: str
    encoded_as: Literal["text", "id"]


class SourceLedger(Frozen):
    """Where the tokens of one source went.

    tokens_read = tokens + tokens_cut + tokens_left_over, and tokens = loss_tokens +
    masked_tokens. Documents, characters and tokens "read" count every epoch of the source.

    The price of packing: `padding` (tokens of rows that hold nothing) and `continuations` (tokens
    that lost their label and their context to a cut). In the file `epochs` is `passes` and
    `max_epochs` is `max_passes`.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    corpus: str
    format: str
    packing: str  # concat_chunk, best_fit; whole: best fit, never split
    share: float  # of the token budget, over all phases
    max_epochs: int | None = Field(validation_alias="max_passes", serialization_alias="max_passes")
    documents_available: int
    documents_read: int
    characters_read: int
    tokens_read: int
    epochs: int = Field(validation_alias="passes", serialization_alias="passes")  # begun
    rows: int
    documents: int  # documents that begin in the pack
    tokens: int
    loss_tokens: int
    masked_tokens: int
    bos_tokens: int
    eos_tokens: int
    padding: int
    continuations: int  # segments that continue the document of an earlier row
    tokens_cut: int  # of the last row, beyond the budget
    tokens_left_over: int  # read, but in no row: the rest of a document, or rows not needed
    added_tokens: tuple[AddedTokenUse, ...] = ()

    @property
    def documents_reached(self) -> int:
        """So many documents, from the first in the order of reading, are in the pack: whole with
        concat_chunk, while other packings may have left parts of them over."""
        if self.epochs > 1:
            return self.documents_available
        if self.packing == "concat_chunk":
            return min(self.documents, self.eos_tokens)  # the last one may have been cut
        return self.documents_read


class PhaseLedger(Frozen):
    """One phase: `tokens_by_source` in the order of the sources. `share` is what was asked for."""

    share: float
    first_row: int
    rows: int
    tokens: int
    tokens_by_source: tuple[int, ...]


class RowMark(Frozen):
    """The first `rows` rows hold `tokens` real tokens; `sha256` is over these rows."""

    rows: int
    tokens: int
    sha256: str


class PackLedger(Frozen):
    """Counts over the whole pack; `tokens` equals `token_budget` exactly.

    Hashes are over every row's ids (uint32, little endian), then its flags, in order. `marks` are
    at 1, 2, 4, ... rows and at the last but one, so packs of different budgets can be compared
    without their rows: equal hashes at the same number of rows mean equal rows up to there.

    Values that no pack can have are refused; counts that are wrong are for `data inspect` to find.
    """

    format_version: Positive
    num_rows: Positive
    sequence_length: Positive
    token_budget: Positive
    tokens: Count
    loss_tokens: Count
    padding: Count
    repeat: bool
    seed: int
    bos_id: Count | None
    eos_id: Count
    pad_id: Count
    tokenizer_map_hash: str
    rows_sha256: str
    marks: tuple[RowMark, ...]
    added_tokens: tuple[AddedToken, ...] = ()  # those that the sources have
    phases: tuple[PhaseLedger, ...]  # none where the mixture is the same throughout
    sources: Annotated[tuple[SourceLedger, ...], Field(min_length=1, max_length=MAX_SOURCES)]

    def documents_reached(self, corpus: str) -> int:
        """See `SourceLedger`; 0 for a corpus that is no source."""
        return max((s.documents_reached for s in self.sources if s.corpus == corpus), default=0)


def write_ledger(out: Path, ledger: PackLedger) -> None:
    """Write `pack.json`."""
    write_json_atomic(out / LEDGER_FILE, ledger)


def read_ledger(path: Path) -> PackLedger:
    """The ledger of the pack in directory `path`.

    Raises CompatibilityError for a pack of another format version, and CorruptArtifactError.
    """
    try:
        content = (path / LEDGER_FILE).read_bytes()
        _check_version(path, json.loads(content))
        return PackLedger.model_validate_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(
            f"pack {path} has no readable ledger",
            problems=[f"{LEDGER_FILE}: {error}"],
            remedy="Delete the artifact and run again; it will be rebuilt.",
        ) from error


def _check_version(path: Path, ledger: object) -> None:
    if not isinstance(ledger, dict):
        return
    found = cast("dict[str, object]", ledger).get("format_version")
    if isinstance(found, int) and found != FORMAT_VERSION:
        raise CompatibilityError(
            f"pack {path} has format version {found}; this version of cpt_residual reads"
            f" {FORMAT_VERSION}",
            remedy="Run the experiment again: the pack is built anew beside the old one.",
        )
