"""Build a pack: documents in a seeded order, encoded, mixed by shares, to an exact token budget.

Guarantees: the sum of real tokens is exactly `token_budget` (the last row is cut and padded);
every token read is in the pack or counted as cut or left over; the bytes depend on the documents,
the encoders and the plan only, never on batch sizes; the pack of a smaller budget is a prefix of
the pack of a larger one, but for the padding of its last row. Constant memory besides about 16
bytes a document. The format is in `pack_format`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.documents import Messages
from cpt_residual.data.index import LineIndex
from cpt_residual.data.mixture import Mixture
from cpt_residual.data.pack_format import (
    IGNORED_LABEL,
    PackLedger,
    PackView,
    PackWriter,
    SourceLedger,
    open_pack,
    write_ledger,
)
from cpt_residual.data.rows import Row, cut_row
from cpt_residual.data.source_rows import (
    DocumentSource,
    PackPlan,
    Source,
    SourceRows,
    chat_source,
    text_source,
)
from cpt_residual.errors import CorpusError

__all__ = [
    "IGNORED_LABEL",
    "DocumentSource",
    "PackLedger",
    "PackPlan",
    "PackView",
    "Source",
    "SourceLedger",
    "build_pack",
    "chat_source",
    "open_pack",
    "text_source",
]

FORMAT_VERSION = 1

AnySourceRows = SourceRows[str] | SourceRows[Messages]

_REPORT_EVERY_ROWS = 256


def build_pack(
    out: Path,
    sources: Sequence[Source],
    plan: PackPlan,
    *,
    progress: ProgressReport,
    batch_documents: int = 1024,
) -> PackLedger:
    """Write the pack below `out` and return its ledger.

    Raises `CorpusError` for documents that cannot be used, for chat documents longer than a row,
    and when a source has fewer tokens than its share needs and `repeat` is off.
    """
    names = [source.name for source in sources]
    mixture = Mixture([source.share for source in sources], names=names)
    with ExitStack() as stack:
        indexes = [stack.enter_context(LineIndex(source.documents)) for source in sources]
        streams = [
            source.rows(plan, index, batch_documents=batch_documents)
            for source, index in zip(sources, indexes, strict=True)
        ]
        writer = stack.enter_context(PackWriter(out, sequence_length=plan.sequence_length))
        for row in _mixed_rows(streams, mixture, plan):
            writer.append(row)
            if writer.num_rows % _REPORT_EVERY_ROWS == 0:
                progress(sum(mixture.tokens), plan.token_budget, "tokens")
        progress(sum(mixture.tokens), plan.token_budget, "tokens")
        ledger = _ledger(plan, writer.num_rows, writer.finish(), [s.ledger() for s in streams])
    write_ledger(out, ledger)
    return ledger


def _mixed_rows(
    streams: Sequence[AnySourceRows], mixture: Mixture, plan: PackPlan
) -> Iterator[Row]:
    """Rows in training order, the last one cut to the budget."""
    remaining = plan.token_budget
    while remaining:
        for number in mixture.by_deficit(row_tokens=plan.sequence_length):
            row = streams[number].next_row()
            if row is not None:
                break
            needed = mixture.needed(number, token_budget=plan.token_budget)
            if mixture.tokens[number] < needed:
                raise _too_few_tokens(streams[number], needed, plan)
        else:
            raise AssertionError("every source gave its share, yet the budget is not met")
        kept = min(remaining, row.num_tokens)
        if kept < row.num_tokens:
            streams[number].num_cut += row.num_tokens - kept
            row = cut_row(row, kept, pad_id=plan.pad_id)
        streams[number].count(row)
        mixture.add(number, kept)
        remaining -= kept
        yield row


def _too_few_tokens(stream: AnySourceRows, needed: int, plan: PackPlan) -> CorpusError:
    source, found = stream.source, stream.num_tokens_read
    return CorpusError(
        f"source {source.name} has too few tokens: {found} found, {needed} needed",
        problems=[
            f"needed: share {source.share:g} of token_budget {plan.token_budget}",
            f"found: one pass over the {stream.num_documents} documents of {source.documents.name}",
        ],
        remedy="Add documents, lower token_budget, or set repeat: true to pass over the source"
        f" about {needed / found:.1f} times.",
    )


def _ledger(
    plan: PackPlan, num_rows: int, rows_sha256: str, sources: Sequence[SourceLedger]
) -> PackLedger:
    num_tokens = sum(source.tokens for source in sources)
    assert num_tokens == plan.token_budget, "the budget was not met exactly"
    return PackLedger(
        format_version=FORMAT_VERSION,
        num_rows=num_rows,
        sequence_length=plan.sequence_length,
        token_budget=plan.token_budget,
        tokens=num_tokens,
        loss_tokens=sum(source.loss_tokens for source in sources),
        padding=sum(source.padding for source in sources),
        repeat=plan.repeat,
        seed=plan.seed,
        bos_id=plan.bos_id,
        eos_id=plan.eos_id,
        pad_id=plan.pad_id,
        tokenizer_map_hash=plan.tokenizer_map_hash,
        rows_sha256=rows_sha256,
        sources=tuple(sources),
    )
