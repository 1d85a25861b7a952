"""Whether a pack's rows are what its ledger says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cpt_residual.data.inspection.checks import Check, compared, manifest_check, some
from cpt_residual.data.inspection.lineage import Lineage
from cpt_residual.data.inspection.recount import Recount
from cpt_residual.data.nesting import row_hashes
from cpt_residual.data.pack_format import PackView

if TYPE_CHECKING:
    from cpt_residual.data.inspection.decoding import TokenDecoder


def pack_checks(
    view: PackView,
    found: Recount,
    decoder: TokenDecoder | None,
    lineage: Lineage,
    *,
    verify: bool,
) -> Iterator[Check]:
    """All of them; `verify` reads every byte once more for the hashes."""
    totals = _integers(view.ledger.model_dump())
    whole = totals | {"rows": totals["num_rows"]}
    yield compared("counts of the whole pack", found.counted(), whole)
    for number, source in enumerate(view.ledger.sources):
        recorded = _integers(source.model_dump())
        yield compared(f"counts of source {source.corpus}", found.counted(number), recorded)
    yield from _phases(view, found)
    faults = found.faults.lines()
    yield Check(
        name="rows are well formed",
        state="differs" if faults else "agrees",
        detail=some(faults) if faults else "segments, labels and padding as the format says",
    )
    yield _vocabulary(found.max_id, decoder)
    yield _row_hashes(view, verify=verify)
    yield manifest_check(lineage.path, lineage.manifest, verify=verify)


def _phases(view: PackView, found: Recount) -> Iterator[Check]:
    names = [f"{number} {source.corpus}" for number, source in enumerate(view.ledger.sources, 1)]
    for number, phase in enumerate(view.ledger.phases):
        counted = dict(zip(names, found.tokens_PS[number].tolist(), strict=True))
        recorded = dict(zip(names, phase.tokens_by_source, strict=False))
        name = f"tokens of phase {number + 1}"
        if len(phase.tokens_by_source) != len(names):
            detail = f"the ledger has {len(names)} sources, its phase {len(recorded)} of them"
            yield Check(name=name, state="differs", detail=detail)
        else:
            yield compared(name, counted, recorded)


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
