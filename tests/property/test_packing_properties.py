"""What holds for every pack, whatever the documents, lengths, shares and budgets."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual.data.index import seeded_order
from cpt_residual.data.packing import IGNORED_LABEL, PackLedger, PackView, Source, open_pack
from cpt_residual.data.rows import CONTINUATION, LOSS, PADDING, START
from support.packs import (
    EOS,
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

    def sources(self, folder: Path) -> list[Source]:
        share = self.share if self.texts and self.dialogues else 1.0
        sources: list[Source] = []
        if self.texts:
            path = write_texts(folder / "texts.jsonl", self.texts)
            sources.append(byte_texts(path, share=share))
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
    check_masks(flags)
    check_ledger(ids, flags, ledger)
    assert (ids[~real] == PAD).all()
    for number in range(len(view)):
        check_row(view, number)


def check_masks(flags: np.ndarray) -> None:
    start, loss, padding = ((flags & bit) != 0 for bit in (START, LOSS, PADDING))
    assert start[:, 0].all(), "every row begins a segment"
    assert not (loss & start).any(), "no label at the start of a segment"
    assert not (loss & padding).any(), "no label in the padding"
    assert ((start & padding).sum(axis=1) == padding.any(axis=1)).all(), "padding is one segment"
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding is a tail"
    continued = (flags & CONTINUATION) != 0
    assert not continued[:, 1:].any(), "only a row's first segment continues a document"
    assert (start | ~continued).all()


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
    assert view.num_tokens(number) == ((flags & PADDING) == 0).sum()


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


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_documents_are_read_in_seeded_order_and_never_lost(case: Case) -> None:
    """Text, concatenated back, is the documents in seeded order; dialogues come back whole."""
    with tempfile.TemporaryDirectory() as folder:
        view = build(case, Path(folder))
        rows = [(np.array(view.ids[i]), np.array(view.flags[i])) for i in range(len(view))]
    for source in view.ledger.sources:
        mine = [row for row in rows if is_chat(row, case) == (source.format == "chat")]
        if source.format == "text":
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
        sources: list[Source] = []
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
