"""What holds for every pack, whatever the documents, lengths, shares and budgets."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.data.documents.line_index import seeded_order
from cpt_residual.data.packing.build import DocumentSource, PackLedger, PhasePlan
from cpt_residual.data.packing.pack_format import IGNORED_LABEL, PackView, open_pack, row_hashes
from cpt_residual.data.packing.rows import CONTINUATION, LOSS, PADDING, START
from cpt_residual.data.tokenize.document_source import Packing
from support.packs import (
    EOS,
    FIRST_BYTE,
    PAD,
    Dialogue,
    byte_dialogues,
    byte_texts,
    dialogue,
    encode_bytes,
    encode_dialogues,
    pack,
    plan,
    write_dialogues,
    write_texts,
)

TEXT = st.text(alphabet="abcdefgh", min_size=1, max_size=40)
SHARES = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9])


@dataclass(frozen=True)
class Case:
    """Texts and dialogues (either may be empty, not both), the text's share, and the plan."""

    texts: list[str]
    dialogues: list[Dialogue]
    share: float
    length: int
    budget: int
    seed: int
    batch: int
    packing: Packing

    def sources(self, folder: Path) -> list[DocumentSource]:
        share = self.share if self.texts and self.dialogues else 1.0
        sources: list[DocumentSource] = []
        if self.texts:
            path = write_texts(folder / "texts.jsonl", self.texts)
            sources.append(byte_texts(path, share=share, packing=self.packing))
        if self.dialogues:
            path = write_dialogues(folder / "chat.jsonl", self.dialogues)
            sources.append(byte_dialogues(path, share=1 - share if self.texts else 1.0))
        return sources


@st.composite
def cases(draw: st.DrawFn) -> Case:
    length = draw(st.integers(2, 24))
    half = st.text(alphabet="abcdefgh", min_size=1, max_size=length // 2)
    texts = draw(st.lists(TEXT, max_size=12))
    dialogues = draw(
        st.lists(st.builds(dialogue, half, half), min_size=0 if texts else 1, max_size=12)
    )
    return Case(
        texts=texts,
        dialogues=dialogues,
        share=draw(SHARES),
        length=length,
        budget=draw(st.integers(1, 600)),
        seed=draw(st.integers(0, 3)),
        batch=draw(st.integers(1, 5)),
        packing=draw(st.sampled_from(["concat_chunk", "best_fit"])),
    )


def build(
    case: Case, folder: Path, *, batch: int | None = None, budget: int | None = None
) -> PackView:
    folder.mkdir(exist_ok=True)
    asked = plan(case.length, budget or case.budget, repeat=True, seed=case.seed)
    pack(folder, case.sources(folder), asked, batch_bytes=20 * (batch or case.batch))
    return open_pack(folder)


@given(case=cases())
@settings(deadline=None, max_examples=150)
def test_budget_ledger_and_masks(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        view = build(case, Path(folder))
        ids, flags, ledger = np.array(view.ids), np.array(view.flags), view.ledger
    real = (flags & PADDING) == 0
    assert real.sum() == ledger.tokens == case.budget
    check_masks(flags, is_concat=case.packing == "concat_chunk")
    check_sources(view)
    check_marks(view)
    check_ledger(ids, flags, ledger)
    assert (ids[~real] == PAD).all()
    for number in range(len(view)):
        check_row(view, number)


def check_masks(flags: np.ndarray, *, is_concat: bool) -> None:
    start, loss, padding = ((flags & bit) != 0 for bit in (START, LOSS, PADDING))
    assert start[:, 0].all(), "every row begins a segment"
    assert not (loss & start).any(), "no label at the start of a segment"
    assert not (loss & padding).any(), "no label in the padding"
    assert ((start & padding).sum(axis=1) == padding.any(axis=1)).all(), "padding is one segment"
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding is a tail"
    continued = (flags & CONTINUATION) != 0
    if is_concat:
        assert not continued[:, 1:].any(), "only a row's first segment continues a document"
    assert (start | ~continued).all()
    assert not (continued & padding).any()


def check_sources(view: PackView) -> None:
    """Every row has its source, and counts by source are those of its rows."""
    for number, source in enumerate(view.ledger.sources):
        mine = np.array(view.flags)[np.array(view.row_sources) == number]
        assert source.rows == len(mine)
        assert source.tokens == (mine & PADDING == 0).sum()
        assert source.continuations == (mine & CONTINUATION != 0).sum()


def check_marks(view: PackView) -> None:
    """Marks are hashes of the first rows, at powers of two and before the last row."""
    rows = [mark.rows for mark in view.ledger.marks]
    powers = {1 << power for power in range(len(view).bit_length())}
    assert rows == sorted({n for n in powers | {len(view) - 1} if 0 < n < len(view)})
    hashes = row_hashes(view, [*rows, len(view)])
    for mark in view.ledger.marks:
        assert mark.sha256 == hashes[mark.rows]
        assert mark.tokens == (np.array(view.flags)[: mark.rows] & PADDING == 0).sum()
    assert view.ledger.rows_sha256 == hashes[len(view)]


def check_ledger(ids: np.ndarray, flags: np.ndarray, ledger: PackLedger) -> None:
    """The books balance, and agree with the rows."""
    real, loss = (flags & PADDING) == 0, (flags & LOSS) != 0
    for source in ledger.sources:
        assert source.tokens_read == source.tokens + source.tokens_cut + source.tokens_left_over
        assert source.tokens == source.loss_tokens + source.masked_tokens
        assert source.tokens + source.padding == source.rows * ledger.sequence_length
        assert source.documents <= source.documents_read
        assert source.continuations == 0 or source.format == "text"
    begun = real & ((flags & START) != 0) & ((flags & CONTINUATION) == 0)
    totals = {name: sum(getattr(s, name) for s in ledger.sources) for name in TOTALS}
    assert totals["tokens"] == real.sum()
    assert totals["loss_tokens"] == ledger.loss_tokens == loss.sum()
    assert totals["padding"] == ledger.padding == (~real).sum()
    assert totals["documents"] == begun.sum()
    assert totals["eos_tokens"] == (real & (ids == EOS)).sum()
    assert totals["rows"] == ledger.num_rows == len(ids)


TOTALS = ("tokens", "loss_tokens", "padding", "documents", "eos_tokens", "rows")


def check_row(view: PackView, number: int) -> None:
    """Positions restart exactly at the starts, and labels are the ids where loss is."""
    ids, positions, labels = view.row(number)
    flags = np.array(view.flags[number])
    expected = 0
    for column, flag in enumerate(flags):
        expected = 0 if flag & START else expected + 1
        assert positions[column] == expected
        assert labels[column] == (ids[column] if flag & LOSS else IGNORED_LABEL)


@given(case=cases(), batches=st.tuples(st.integers(1, 4), st.integers(5, 50)))
@settings(deadline=None, max_examples=60)
def test_bytes_do_not_depend_on_batch_sizes(case: Case, batches: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written: list[dict[str, bytes]] = []
        for batch in batches:
            out = Path(folder) / str(batch)
            build(case, out, batch=batch)
            written.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert written[0] == written[1]


@given(case=cases(), larger=st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_a_smaller_budget_is_a_prefix(case: Case, larger: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = build(case, Path(folder) / "small")
        large = build(case, Path(folder) / "large", budget=case.budget + larger)
        real = (np.array(small.flags) & PADDING) == 0
        assert (np.array(small.ids)[real] == np.array(large.ids)[: len(small)][real]).all()
        same = np.array(large.flags)[: len(small)][real]
        assert (np.array(small.flags)[real] == same).all()
        last = [len(small) - 1]  # which the budget may have cut
        assert row_hashes(small, last) == row_hashes(large, last)
        marks = {mark.rows: mark.sha256 for mark in large.ledger.marks}
        common = [mark for mark in small.ledger.marks if mark.rows in marks]
        assert all(marks[mark.rows] == mark.sha256 for mark in common)


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_documents_are_read_in_seeded_order_and_never_lost(case: Case) -> None:
    """Text, concatenated back, is the documents in seeded order; dialogues come back whole."""
    with tempfile.TemporaryDirectory() as folder:
        view = build(case, Path(folder))
        rows = [(np.array(view.ids[i]), np.array(view.flags[i])) for i in range(len(view))]
    for source in view.ledger.sources:
        mine = [row for row in rows if is_chat(row, case) == (source.format == "chat")]
        if source.format == "text" and case.packing == "best_fit":
            assert source.tokens_read == sum(
                len(case.texts[number].encode()) + 2
                for number in in_order(len(case.texts), case.seed, "text", source.documents_read)
            )
        elif source.format == "text":
            check_text(mine, case, source.documents_read)
        else:
            check_dialogues(mine, case, is_cut=source.tokens_cut > 0)


def is_chat(row: tuple[np.ndarray, np.ndarray], case: Case) -> bool:
    """Texts of this test begin with BOS or continue one; dialogues do neither."""
    ids, flags = row
    return bool(ids[0] != 2 and not flags[0] & CONTINUATION)


def check_text(rows: list[tuple[np.ndarray, np.ndarray]], case: Case, num_read: int) -> None:
    if not rows:
        return
    found = np.concatenate([ids[(flags & PADDING) == 0] for ids, flags in rows])
    order = in_order(len(case.texts), case.seed, "text", num_read)
    expected = [ids for ids, _ in encode_bytes([case.texts[number] for number in order])]
    stream = np.concatenate(expected)
    assert (found == stream[: len(found)]).all()
    assert (stream == EOS).sum() == num_read, "EOS exactly once per document"


def check_dialogues(rows: list[tuple[np.ndarray, np.ndarray]], case: Case, *, is_cut: bool) -> None:
    whole = {tuple(ids.tolist()) for ids, _ in encode_dialogues(case.dialogues)}
    found: Counter[tuple[int, ...]] = Counter()
    for ids, flags in rows:
        tokens = ids[(flags & PADDING) == 0]
        starts = np.flatnonzero((flags[: len(tokens)] & START) != 0)
        found.update(tuple(part.tolist()) for part in np.split(tokens, starts[1:]))
    broken = [document for document in found if document not in whole]
    assert len(broken) <= int(is_cut), "only the budget may cut a dialogue, and only the last one"


def in_order(num_documents: int, seed: int, name: str, num_read: int) -> list[int]:
    order: list[int] = []
    epoch = 0
    while len(order) < num_read:
        order += seeded_order(num_documents, seed=seed, name=name, epoch=epoch).tolist()
        epoch += 1
    return order[:num_read]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    length=st.integers(2, 32),
)
@settings(deadline=None, max_examples=100)
def test_best_fit_keeps_documents_whole_where_they_fit(lengths: list[int], length: int) -> None:
    """All tokens of a source, asked for: each document is one segment, or full rows and a rest."""
    texts = ["abcdefgh"[number % 8] * size for number, size in enumerate(lengths)]
    total = sum(size + 2 for size in lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = write_texts(Path(folder) / "texts.jsonl", texts)
        ledger = pack(Path(folder), [byte_texts(path, packing="best_fit")], plan(length, total))
        view = open_pack(Path(folder))
        found = Counter(segments(view))
    expected: Counter[tuple[bool, tuple[int, ...]]] = Counter()
    for ids, _ in encode_bytes(texts):
        parts = [ids[first : first + length] for first in range(0, len(ids), length)]
        expected.update((number > 0, tuple(part.tolist())) for number, part in enumerate(parts))
    assert found == expected
    source = ledger.sources[0]
    assert (source.tokens, source.tokens_left_over, source.tokens_cut) == (total, 0, 0)
    assert source.documents == source.eos_tokens == source.bos_tokens == len(texts)
    assert source.masked_tokens == source.documents + source.continuations


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    length=st.integers(2, 64),
    tenths=st.integers(1, 35),
)
@settings(deadline=None, max_examples=100)
def test_best_fit_repeats_nothing_before_everything_was_there(
    lengths: list[int], length: int, tenths: int
) -> None:
    """No document comes k + 1 times before every other one has come k times."""
    texts = [chr(ord("A") + number) * size for number, size in enumerate(lengths)]
    budget = max(sum(size + 2 for size in lengths) * tenths // 10, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = write_texts(Path(folder) / "texts.jsonl", texts)
        asked = plan(length, budget, repeat=True)
        pack(Path(folder), [byte_texts(path, packing="best_fit")], asked)
        found = segments(open_pack(Path(folder)))
    times = dict.fromkeys((text.encode()[0] for text in texts), 0)
    for is_continuation, ids in found:
        if not is_continuation and len(ids) > 1:  # else the budget cut it after BOS
            times[ids[1] - FIRST_BYTE] += 1
            assert max(times.values()) - min(times.values()) <= 1


def segments(view: PackView) -> list[tuple[bool, tuple[int, ...]]]:
    """(is it a continuation, its ids) of every segment that is no padding."""
    found: list[tuple[bool, tuple[int, ...]]] = []
    for ids, flags in zip(np.array(view.ids), np.array(view.flags), strict=True):
        starts = np.flatnonzero(flags & START)
        for first, part in zip(starts, np.split(ids, starts[1:]), strict=True):
            if not flags[first] & PADDING:
                found.append((bool(flags[first] & CONTINUATION), tuple(part.tolist())))
    return found


PHASES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 10)), min_size=1, max_size=4
)  # (weight of the phase, tenths of the first source)


@given(parts=PHASES, length=st.integers(2, 16), budget=st.integers(1, 900))
@settings(deadline=None, max_examples=100)
def test_phases_follow_each_other_within_a_row(
    parts: list[tuple[int, int]], length: int, budget: int
) -> None:
    total = sum(weight for weight, _ in parts)
    phases = [PhasePlan(weight / total, (n / 10, (10 - n) / 10)) for weight, n in parts]
    with tempfile.TemporaryDirectory() as folder:
        first = write_texts(Path(folder) / "a.jsonl", ["a" * 9, "aa"])
        second = write_texts(Path(folder) / "b.jsonl", ["b" * 5])
        sources = [byte_texts(first, "a", share=0.5), byte_texts(second, "b", share=0.5)]
        ledger = pack(Path(folder), sources, plan(length, budget, repeat=True, phases=phases))
        view = open_pack(Path(folder))
        row_sources = np.array(view.row_sources)
    assert ledger.tokens == sum(phase.tokens for phase in ledger.phases) == budget
    assert sum(phase.rows for phase in ledger.phases) == ledger.num_rows
    for asked, got in zip(phases, ledger.phases, strict=True):
        assert abs(got.tokens - asked.share * budget) < length + 1
        mine = row_sources[got.first_row : got.first_row + got.rows]
        for number, share in enumerate(asked.shares):
            assert abs(got.tokens_by_source[number] - share * got.tokens) <= length
            assert share or number not in mine, "a source without a share gives no row"


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    length=st.integers(2, 32),
)
@settings(deadline=None, max_examples=100)
def test_a_source_with_exactly_its_budget_is_enough(lengths: list[int], length: int) -> None:
    """Without repeat: every token of the source can be asked for, and none twice."""
    texts = ["a" * number for number in lengths]
    total = sum(len(text) + 2 for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        path = write_texts(Path(folder) / "texts.jsonl", texts)
        ledger = pack(Path(folder), [byte_texts(path)], plan(length, total))
    source = ledger.sources[0]
    assert (source.tokens, source.tokens_left_over, source.tokens_cut) == (total, 0, 0)
    assert source.documents == source.eos_tokens == source.bos_tokens == len(texts)


@given(
    sizes=st.lists(st.integers(1, 400), min_size=2, max_size=3),
    length=st.integers(2, 32),
    budget=st.integers(1, 400),
)
@settings(deadline=None, max_examples=100)
def test_a_source_with_its_share_is_enough(sizes: list[int], length: int, budget: int) -> None:
    """No source that holds its share of the budget ever makes a pack fail."""
    shares = [size / sum(sizes) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        sources: list[DocumentSource] = []
        for number, share in enumerate(shares):
            needed = int(np.ceil(share * budget)) + 1
            path = write_texts(Path(folder) / f"{number}.jsonl", ["a"] * (-(-needed // 3)))
            sources.append(byte_texts(path, str(number), share=share))
        ledger = pack(Path(folder), sources, plan(length, budget))
    assert ledger.tokens == budget


@given(share=SHARES, length=st.integers(2, 16), num_rows=st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_sources_stay_within_a_row_of_their_share(share: float, length: int, num_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = write_texts(Path(folder) / "a.jsonl", ["a" * 9])
        second = write_texts(Path(folder) / "b.jsonl", ["b" * 5])
        sources = [byte_texts(first, "a", share=share), byte_texts(second, "b", share=1 - share)]
        budget = num_rows * length
        ledger = pack(Path(folder), sources, plan(length, budget, repeat=True))
    assert abs(ledger.sources[0].tokens - share * budget) <= length
