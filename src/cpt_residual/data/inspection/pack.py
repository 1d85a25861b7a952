"""A pack as it is: its ledger, the counts of its rows beside it, lengths, composition, samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.data.inspection.checks import Check
from cpt_residual.data.inspection.lengths import LengthSummary
from cpt_residual.data.inspection.lineage import Lineage, SourceCorpus, corpora_of
from cpt_residual.data.inspection.looking import Looking
from cpt_residual.data.inspection.pack_checks import pack_checks
from cpt_residual.data.inspection.recount import Recount, recount
from cpt_residual.data.inspection.samples import SampleRow, row_numbers, sample_row
from cpt_residual.data.pack_format import PackView, open_pack
from cpt_residual.errors import CorruptArtifactError

if TYPE_CHECKING:
    from cpt_residual.data.inspection.decoding import TokenDecoder


class Composition(Frozen):
    """Blocks of neighbouring rows in training order: real tokens of each source, and padding."""

    sources: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    padding: tuple[int, ...]


class SourceRecount(Frozen):
    """What the rows of one source hold; lengths: of its documents in tokens, as far as they are in
    the pack (None: it has no row)."""

    corpus: str
    counted: dict[str, int]
    lengths: LengthSummary | None


class PackInspection(Frozen):
    """ledger: pack.json; counted, sources: the same from the rows, in all and in the order of the
    ledger's sources. unfinished_documents: those whose end is not in the pack, such as the one that
    the budget cuts. tokenizer: the directory that rows were decoded with. corpora: what the store
    knows of the corpora that the pack was made from."""

    kind: Literal["pack"] = "pack"
    path: str
    node: str | None
    fingerprint: str | None
    num_rows: int
    sequence_length: int
    ledger: dict[str, JsonValue]
    counted: dict[str, int]
    sources: tuple[SourceRecount, ...]
    unfinished_documents: int
    composition: Composition
    tokenizer: str | None
    corpora: tuple[SourceCorpus, ...]
    samples: tuple[SampleRow, ...]
    checks: tuple[Check, ...]


def inspect_pack(
    lineage: Lineage, decoder: TokenDecoder | None, looking: Looking
) -> PackInspection:
    """Look at every row of a pack, in constant memory.

    Raises CorruptArtifactError when its files, their shapes and its ledger do not belong together,
    CompatibilityError for a pack of another format version; what can be read and is wrong is a
    check that `differs`.
    """
    view = open_pack(lineage.path)
    _require_known_sources(view)
    found = recount(view, looking.report)
    names = [source.corpus for source in view.ledger.sources]
    numbers = row_numbers(len(view), wanted=looking.rows, seed=looking.seed)
    manifest = lineage.manifest
    return PackInspection(
        path=str(lineage.path),
        node=manifest.node if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        num_rows=len(view),
        sequence_length=view.sequence_length,
        ledger=view.ledger.model_dump(mode="json"),
        counted=found.counted(),
        sources=tuple(_sources(found, names)),
        unfinished_documents=found.num_unfinished,
        composition=Composition(
            sources=tuple(names),
            tokens=tuple(tuple(block) for block in found.tokens_BS.tolist()),
            padding=tuple(found.padding_B.tolist()),
        ),
        tokenizer=str(decoder.directory) if decoder else None,
        corpora=tuple(corpora_of(lineage, names)),
        samples=tuple(
            sample_row(view, number, source=names[int(view.row_sources[number])], decoder=decoder)
            for number in numbers
        ),
        checks=tuple(pack_checks(view, found, decoder, lineage, verify=looking.verify)),
    )


def _require_known_sources(view: PackView) -> None:
    """Raises CorruptArtifactError for a row of a source that the ledger does not have."""
    sources, num_sources = np.asarray(view.row_sources), len(view.ledger.sources)
    foreign = np.flatnonzero(sources >= num_sources)
    if len(foreign):
        first = int(foreign[0])
        what = f"{len(foreign):,} rows are of no source that pack.json has ({num_sources})"
        raise CorruptArtifactError(
            f"pack {view.path} is damaged",
            problems=[f"sources.npy: {what}; the first is row {first:,}, source {sources[first]}"],
            remedy="Delete the artifact and run again; it will be rebuilt.",
        )


def _sources(found: Recount, names: list[str]) -> Iterator[SourceRecount]:
    for number, name in enumerate(names):
        lengths = found.documents.by_source[number].summary()
        yield SourceRecount(corpus=name, counted=found.counted(number), lengths=lengths)
