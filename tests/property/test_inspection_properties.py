"""Looking at a pack finds what is in it, whatever it is made of and however it is read."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.core.stage import no_progress
from cpt_residual.data.inspection.lengths import summary_of
from cpt_residual.data.inspection.recount import recount
from cpt_residual.data.inspection.samples import Decoder, SampleRow, sample_row
from cpt_residual.data.packing.build import DocumentSource
from cpt_residual.data.packing.pack_format import PackView, open_pack
from support.packs import (
    BOS,
    EOS,
    FIRST_BYTE,
    Dialogue,
    byte_dialogues,
    byte_texts,
    dialogue,
    pack,
    plan,
    write_dialogues,
    write_texts,
)

TEXTS = st.lists(st.text(alphabet="abcdé日", min_size=1, max_size=30), min_size=1, max_size=8)


class Bytes:
    """The decoder of `support.packs.encode_bytes`."""

    specials: ClassVar[dict[int, str]] = {EOS: "<eos>", BOS: "<bos>"}

    def text(self, ids: Sequence[int]) -> str:
        return bytes(token - FIRST_BYTE for token in ids).decode(errors="replace")


DECODER: Decoder = Bytes()


@dataclass(frozen=True)
class Case:
    """Two text sources, one packed by best fit, and dialogues."""

    texts: list[str]
    fitted: list[str]
    dialogues: list[Dialogue]
    shares: tuple[float, float, float]
    length: int
    budget: int

    def build(self, folder: Path) -> PackView:
        given: list[DocumentSource] = [
            byte_texts(write_texts(folder / "a", self.texts), "text", share=self.shares[0]),
            byte_texts(
                write_texts(folder / "b", self.fitted),
                "fitted",
                share=self.shares[1],
                packing="best_fit",
            ),
            byte_dialogues(
                write_dialogues(folder / "c", self.dialogues), "chat", share=self.shares[2]
            ),
        ]
        pack(folder / "pack", given, plan(self.length, self.budget, repeat=True))
        return open_pack(folder / "pack")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    length = draw(st.integers(3, 24))
    half = st.text(alphabet="abc", min_size=1, max_size=length // 2)
    return Case(
        texts=draw(TEXTS),
        fitted=draw(TEXTS),
        dialogues=draw(st.lists(st.builds(dialogue, half, half), min_size=1, max_size=6)),
        shares=draw(st.sampled_from([(0.5, 0.25, 0.25), (0.1, 0.6, 0.3), (0.34, 0.33, 0.33)])),
        length=length,
        budget=draw(st.integers(1, 500)),
    )


@given(case=cases(), rows=st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_the_recount_is_the_ledger(case: Case, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        view = case.build(Path(folder))
        found = recount(view, no_progress)
        again = recount(view, no_progress, chunk_tokens=rows * case.length)
        order = list(np.array(view.row_sources))
    ledger = view.ledger
    for number, source in enumerate(ledger.sources):
        counted = found.counted(number)
        assert counted == {name: getattr(source, name) for name in counted}
    assert found.faults() == []
    assert found.counted()["rows"] == ledger.num_rows == len(order)
    for source, lengths in zip(ledger.sources, found.lengths, strict=True):
        assert lengths.total() == source.documents + source.continuations
        assert sum(length * count for length, count in lengths.items()) == source.tokens
    assert again.lengths == found.lengths
    assert again.counts == found.counts
    assert again.max_id == found.max_id


@given(case=cases())
@settings(deadline=None, max_examples=40)
def test_rows_are_shown_token_by_token(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        view = case.build(Path(folder))
        rows = [sample_row(view, n, source="s", decoder=DECODER) for n in range(len(view))]
        plain = [sample_row(view, n, source="s", decoder=None) for n in range(len(view))]
        ids = np.array(view.ids)
    documents = {*case.texts, *case.fitted}
    for row, numbers, shown in zip(rows, plain, ids.tolist(), strict=True):
        assert sum(segment.num_tokens for segment in row.segments) == case.length
        assert [run.kind for run in runs(row)] == [run.kind for run in runs(numbers)]
        told = [int(token) for run in runs(numbers) for token in run.text.split()]
        assert told == shown[: row.num_tokens]
        for segment in row.segments:
            kinds = [run.kind for run in segment.runs]
            assert sum(run.num_tokens for run in segment.runs) in (segment.num_tokens, 0)
            if kinds and (kinds[0], kinds[-1]) == ("bos", "eos"):
                assert "".join(run.text for run in segment.runs[1:-1]) in documents


def runs(row: SampleRow) -> list:
    return [run for segment in row.segments for run in segment.runs]


@given(lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_lengths_are_counted_exactly(lengths: list[int]) -> None:
    summary = summary_of(Counter(lengths))
    assert summary is not None
    ordered = sorted(lengths)
    assert (summary.shortest, summary.longest) == (ordered[0], ordered[-1])
    assert (summary.count, summary.total) == (len(lengths), sum(lengths))
    assert summary.median == ordered[(len(ordered) - 1) // 2]
    assert sum(bin_.count for bin_ in summary.bins) == len(lengths)
    assert sum(bin_.total for bin_ in summary.bins) == sum(lengths)
    for bin_ in summary.bins:
        assert bin_.count == sum(bin_.first <= length <= bin_.last for length in lengths)
    for before, after in zip(summary.bins, summary.bins[1:], strict=False):
        assert after.first == before.last + 1
