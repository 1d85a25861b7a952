"""Build a pack: documents in a seeded order, encoded, mixed by shares, to an exact token budget.

Guarantees: the sum of real tokens is exactly `token_budget`. The rule for the last row: it is the
next row in order, cut after the last token that the budget allows and padded. Every token read is
in the pack or counted as cut or left over. The bytes depend on the documents, the encoders and the
plan only, never on workers, shards or kills. Without phases, the pack of a smaller budget is the
beginning of the pack of a larger one, but for the padding of its last row. A text comes k times
before any text of its source comes k + 1 times. Constant memory besides 16 bytes a document (40 for
a moment when an epoch begins). The format is in `pack_format`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.documents.line_index import LineIndex
from cpt_residual.data.packing.mixture import Curriculum, PhasePlan
from cpt_residual.data.packing.pack_format import (
    PackWriter,
)
from cpt_residual.data.packing.pack_ledger import (
    FORMAT_VERSION,
    AddedToken,
    PackLedger,
    PhaseLedger,
    SourceLedger,
    write_ledger,
)
from cpt_residual.data.packing.row_counts import SpecialIds
from cpt_residual.data.packing.rows import Row, cut_row
from cpt_residual.data.packing.source_rows import RowShape, SourceRows
from cpt_residual.data.tokenize.document_source import DocumentSource
from cpt_residual.data.tokenize.encoded_blocks import (
    Reading,
    Supplier,
    Tokenising,
)
from cpt_residual.errors import CorpusError
from cpt_residual.modeling.added_tokens import NO_ADDED_TOKENS, AddedTokens

_REPORT_EVERY_ROWS = 256


@dataclass(frozen=True)
class PackPlan:
    """What is asked for. Ids come from the tokenizer whose `token_map_hash` is given.

    `phases`: mixtures one after the other, each with shares in the order of the sources; without
    any, the sources' own shares hold throughout.
    """

    sequence_length: int
    token_budget: int
    repeat: bool
    seed: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    tokenizer_map_hash: str
    phases: tuple[PhasePlan, ...] = ()
    added_tokens: AddedTokens = NO_ADDED_TOKENS

    @property
    def special(self) -> SpecialIds:
        """The ids with a meaning of their own."""
        return SpecialIds(bos=self.bos_id, eos=self.eos_id, pad=self.pad_id)

    def max_epochs(self, source: DocumentSource) -> int | None:
        """How often `source` may be read; None: as often as wanted."""
        if source.max_epochs is not None:
            return source.max_epochs
        return None if self.repeat else 1


def build_pack(
    out: Path,
    sources: Sequence[DocumentSource],
    plan: PackPlan,
    *,
    progress: ProgressReport,
    tokenising: Tokenising = Tokenising(),  # noqa: B008  a frozen value
) -> PackLedger:
    """Write the pack below `out` and return its ledger.

    Raises `CorpusError` for documents that cannot be used, for chat documents longer than a row,
    and when a source has fewer tokens than its share needs in as many epochs as it may have.
    """
    shares = tuple(source.share for source in sources)
    curriculum = Curriculum(plan.phases or [PhasePlan(1.0, shares)], token_budget=plan.token_budget)
    with ExitStack() as stack:
        indexes = [stack.enter_context(LineIndex(source.documents)) for source in sources]
        _require_documents(sources, indexes)
        readings = [
            Reading(index, plan.seed, plan.max_epochs(source), curriculum.needed(number))
            for number, (source, index) in enumerate(zip(sources, indexes, strict=True))
        ]
        supplier = Supplier(sources, readings, tokenising, identity=plan.tokenizer_map_hash)
        blocks = stack.enter_context(supplier).blocks()
        shape = RowShape(plan.sequence_length, plan.pad_id)
        streams = [
            SourceRows(source, index, its_blocks, shape)
            for source, index, its_blocks in zip(sources, indexes, blocks, strict=True)
        ]
        writer = stack.enter_context(
            PackWriter(
                out,
                sequence_length=plan.sequence_length,
                num_sources=len(sources),
                special=plan.special,
            )
        )
        for number, row in _mixed_rows(streams, curriculum, plan):
            writer.append(row, number)
            if writer.num_rows % _REPORT_EVERY_ROWS == 0:
                progress(curriculum.num_tokens, plan.token_budget, "tokens")
        progress(curriculum.num_tokens, plan.token_budget, "tokens")
        ledger = _ledger(plan, writer, curriculum, streams)
    write_ledger(out, ledger)
    return ledger


def _require_documents(sources: Sequence[DocumentSource], indexes: Sequence[LineIndex]) -> None:
    for source, index in zip(sources, indexes, strict=True):
        if len(index) == 0:
            raise CorpusError(
                f"source {source.name}: {index.path.name} holds no document",
                remedy="Take it out of the pack's `sources`, or give its corpus documents.",
            )


def _mixed_rows(
    streams: Sequence[SourceRows], curriculum: Curriculum, plan: PackPlan
) -> Iterator[tuple[int, Row]]:
    """(source, row) in training order, the last one cut to the budget."""
    remaining = plan.token_budget
    while remaining:
        for number in curriculum.by_deficit(row_tokens=plan.sequence_length):
            row = streams[number].next_row()
            if row is not None:
                break
            if curriculum.still_needs(number):
                raise _too_few_tokens(streams[number], curriculum.needed(number), plan)
        else:
            raise AssertionError("every source gave its share, yet the budget is not met")
        kept = min(remaining, row.num_tokens)
        if kept < row.num_tokens:
            streams[number].num_cut += row.num_tokens - kept
            row = cut_row(row, kept, pad_id=plan.pad_id)
        curriculum.add(number, kept)
        remaining -= kept
        yield number, row


def _too_few_tokens(stream: SourceRows, needed: int, plan: PackPlan) -> CorpusError:
    source, found = stream.source, stream.num_tokens_read()
    epochs = stream.num_epochs
    times = "one epoch" if epochs == 1 else f"{epochs} epochs"
    if source.max_epochs is None:
        remedy = f"set repeat: true for about {needed * epochs / found:.1f} epochs of the source."
    else:
        remedy = f"raise max_epochs from {source.max_epochs} to {-(-needed * epochs // found)}."
    return CorpusError(
        f"source {source.name} has too few tokens: {found} found, {needed} needed",
        problems=[
            f"needed: share {source.share:g} of token_budget {plan.token_budget}",
            f"found: {times} of the {stream.num_documents} documents of {source.documents.name}",
        ],
        remedy=f"Add documents, lower token_budget, or {remedy}",
    )


def _ledger(
    plan: PackPlan, writer: PackWriter, curriculum: Curriculum, streams: Sequence[SourceRows]
) -> PackLedger:
    rows_sha256 = writer.finish()
    sources = [s.ledger(counts) for s, counts in zip(streams, writer.counts, strict=True)]
    num_tokens = sum(source.tokens for source in sources)
    assert num_tokens == plan.token_budget, "the budget was not met exactly"
    return PackLedger(
        format_version=FORMAT_VERSION,
        num_rows=writer.num_rows,
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
        marks=tuple(writer.marks),
        added_tokens=_added_tokens(plan.added_tokens, sources),
        phases=_phases(plan, curriculum),
        sources=tuple(sources),
    )


def _added_tokens(known: AddedTokens, sources: Sequence[SourceLedger]) -> tuple[AddedToken, ...]:
    used = {use.id for source in sources for use in source.added_tokens}
    as_text = [AddedToken(id=i, token=t, encoded_as="text") for i, t in known.special.items()]
    as_id = [AddedToken(id=i, token=t, encoded_as="id") for i, t in known.ordinary.items()]
    found = [token for token in (*as_text, *as_id) if token.id in used]
    return tuple(sorted(found, key=lambda token: token.id))


def _phases(plan: PackPlan, curriculum: Curriculum) -> tuple[PhaseLedger, ...]:
    firsts = accumulate(curriculum.num_rows, initial=0)
    facts = zip(plan.phases, firsts, curriculum.num_rows, curriculum.tokens, strict=False)
    return tuple(
        PhaseLedger(
            share=phase.share,
            first_row=first,
            rows=num_rows,
            tokens=sum(tokens),
            tokens_by_source=tuple(tokens),
        )
        for phase, first, num_rows, tokens in facts
    )
