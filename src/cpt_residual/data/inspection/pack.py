"""`data inspect` of a pack: its ledger, the counts of its rows beside it, lengths, samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from cpt_residual.base_model import Frozen
from cpt_residual.core.artifact import Manifest
from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.inspection.checks import Check, compared, manifest_check, some
from cpt_residual.data.inspection.decoding import TokenDecoder
from cpt_residual.data.inspection.lengths import LengthSummary, summary_of
from cpt_residual.data.inspection.recount import Recount, recount
from cpt_residual.data.inspection.samples import SampleRow, row_numbers, sample_row
from cpt_residual.data.packing.pack_format import PackView, open_pack, row_hashes
from cpt_residual.data.packing.pack_ledger import PackLedger
from cpt_residual.errors import CorruptArtifactError


class SourceRecount(Frozen):
    """What the rows of one source hold. lengths: of its segments in tokens, where a segment is a
    document or a part of one that was split over rows (None: the source has no row)."""

    corpus: str
    counted: dict[str, int]
    lengths: LengthSummary | None


class PackInspection(Frozen):
    """ledger: pack.json; counted, sources: the same from the rows, in all and in the order of the
    ledger's sources. tokenizer: the directory that rows were decoded with."""

    kind: Literal["pack"] = "pack"
    path: str
    node: str | None
    fingerprint: str | None
    ledger: PackLedger
    counted: dict[str, int]
    sources: tuple[SourceRecount, ...]
    tokenizer: str | None
    samples: tuple[SampleRow, ...]
    checks: tuple[Check, ...]


def inspect_pack(
    path: Path,
    manifest: Manifest | None,
    decoder: TokenDecoder | None,
    *,
    samples: tuple[int, int],
    verify: bool,
    report: ProgressReport,
) -> PackInspection:
    """Look at every row of a pack, in constant memory. samples: how many rows to show, and the seed
    that chooses them; verify: also read and hash every file.

    Raises CorruptArtifactError when its files, their shapes and its ledger do not belong together,
    CompatibilityError for a pack of another format version; what can be read and is wrong is a
    check that `differs`.
    """
    view = open_pack(path)
    _require_known_sources(view)
    found = recount(view, report)
    names = [source.corpus for source in view.ledger.sources]
    wanted, seed = samples
    return PackInspection(
        path=str(path),
        node=manifest.node if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        ledger=view.ledger,
        counted=found.counted(),
        sources=tuple(
            SourceRecount(
                corpus=name,
                counted=found.counted(number),
                lengths=summary_of(found.lengths[number]),
            )
            for number, name in enumerate(names)
        ),
        tokenizer=str(decoder.directory) if decoder else None,
        samples=tuple(
            sample_row(view, number, source=names[int(view.row_sources[number])], decoder=decoder)
            for number in row_numbers(len(view), wanted=wanted, seed=seed)
        ),
        checks=(
            *_checks(view, found),
            _vocabulary(found.max_id, decoder),
            _row_hashes(view, verify=verify),
            manifest_check(path, manifest, verify=verify),
        ),
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


def _checks(view: PackView, found: Recount) -> Iterator[Check]:
    """The rows beside the counts of the ledger, and whether they are well formed."""
    totals = _integers(view.ledger.model_dump())
    yield compared("counts of the whole pack", found.counted(), totals | {"rows": len(view)})
    for number, source in enumerate(view.ledger.sources):
        recorded = _integers(source.model_dump())
        yield compared(f"counts of source {source.corpus}", found.counted(number), recorded)
    names = [f"{number} {source.corpus}" for number, source in enumerate(view.ledger.sources, 1)]
    for number, phase in enumerate(view.ledger.phases):
        name, tokens = f"tokens of phase {number + 1}", phase.tokens_by_source
        if len(tokens) == len(names):
            counted = dict(zip(names, found.tokens_PS[number].tolist(), strict=True))
            yield compared(name, counted, dict(zip(names, tokens, strict=True)))
        else:
            detail = f"the ledger has {len(names)} sources, its phase {len(tokens)} of them"
            yield Check(name=name, state="differs", detail=detail)
    faults = found.faults()
    yield Check(
        name="rows are well formed",
        state="differs" if faults else "agrees",
        detail=some(faults) if faults else "segments, labels and padding as the format says",
    )


def _vocabulary(max_id: int, decoder: TokenDecoder | None) -> Check:
    name = "ids are those of the tokenizer"
    if decoder is None:
        return Check(name=name, state="not checked", detail="no tokenizer was opened")
    return Check(
        name=name,
        state="agrees" if max_id < decoder.num_tokens else "differs",
        detail=f"largest id {max_id:,}, {decoder.num_tokens:,} tokens",
    )


def _row_hashes(view: PackView, *, verify: bool) -> Check:
    """The hash over all rows, and those of the marks before it."""
    name = "hashes of the rows"
    if not verify:
        return Check(name=name, state="not checked", detail="--verify computes them anew")
    ledger = view.ledger
    recorded = {mark.rows: mark.sha256 for mark in ledger.marks}
    recorded[ledger.num_rows] = ledger.rows_sha256
    found = row_hashes(view, recorded)
    wrong = [
        f"the first {rows:,} rows: {found.get(rows)}, in the ledger {recorded[rows]}"
        for rows in sorted(recorded)
        if found.get(rows) != recorded[rows]
    ]
    if wrong:
        return Check(name=name, state="differs", detail=some(wrong))
    detail = f"rows_sha256 and {len(ledger.marks)} marks; {ledger.rows_sha256}"
    return Check(name=name, state="agrees", detail=detail)


def _integers(fields: Mapping[str, object]) -> dict[str, int]:
    return {name: value for name, value in fields.items() if type(value) is int}
