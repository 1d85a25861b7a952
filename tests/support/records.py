"""Documents for the passes, and what a chain of passes makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cpt_residual.config.passes import Passes
from cpt_residual.data.passes.chain import PassChain
from cpt_residual.data.passes.ledger import PassLedger
from cpt_residual.data.passes.references import Reference
from cpt_residual.data.records import Record


def records_of(texts: Iterable[str], dates: Iterable[str | None] | None = None) -> list[Record]:
    """One record a text, from line 1 of `a.jsonl` on."""
    texts = list(texts)
    days = [None] * len(texts) if dates is None else list(dates)
    return [
        Record(text, f"a.jsonl:{number}", day)
        for number, (text, day) in enumerate(zip(texts, days, strict=True), start=1)
    ]


def passed(
    passes: Passes,
    records: Iterable[Record],
    references: Sequence[Reference] | None = None,
) -> tuple[list[Record], tuple[PassLedger, ...]]:
    """What remains, and the ledger."""
    chain = PassChain(passes, references=references)
    remaining = list(chain(records))
    return remaining, chain.ledger()


def dropped(ledger: PassLedger) -> dict[str, int]:
    """Documents dropped, by reason, without those that are zero."""
    return {drop.reason: drop.documents for drop in ledger.dropped if drop.documents}
