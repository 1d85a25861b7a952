"""Documents for the filters, and what a chain of filters makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cpt_residual.config.filters import Filters
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.chain import FilterChain
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.filters.references import Reference


def records_of(texts: Iterable[str], dates: Iterable[str | None] | None = None) -> list[Record]:
    """One record a text, from line 1 of `a.jsonl` on."""
    texts = list(texts)
    days = [None] * len(texts) if dates is None else list(dates)
    return [
        Record(text, f"a.jsonl:{number}", day)
        for number, (text, day) in enumerate(zip(texts, days, strict=True), start=1)
    ]


def filtered(
    filters: Filters,
    records: Iterable[Record],
    references: Sequence[Reference] | None = None,
) -> tuple[list[Record], tuple[FilterLedger, ...]]:
    """What remains, and the ledger."""
    chain = FilterChain(filters, references=references)
    remaining = list(chain(records))
    return remaining, chain.ledger()


def dropped(ledger: FilterLedger) -> dict[str, int]:
    """Documents dropped, by reason, without those that are zero."""
    return {drop.reason: drop.documents for drop in ledger.dropped if drop.documents}
