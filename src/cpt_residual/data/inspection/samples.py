"""Decoded sample rows of a pack: segments and runs of tokens of one kind."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from cpt_residual.base_model import Frozen
from cpt_residual.data.packing.pack_format import PackView
from cpt_residual.data.packing.rows import CONTINUATION, LOSS, PADDING, START, Ids

RunKind = Literal["text", "masked", "bos", "eos", "special"]
SegmentKind = Literal["document", "continuation", "padding"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """Ids to text. `specials`: tokens that are not text, by id."""

    @property
    def specials(self) -> Mapping[int, str]: ...

    def text(self, ids: Sequence[int]) -> str: ...


class Run(Frozen):
    """Neighbouring tokens of one kind, and their text (ids where there is no tokenizer).

    text: bears loss; masked: does not; bos, eos: the ledger's ids where they open a document and
    anywhere; special: another token that is no text.
    """

    kind: RunKind
    text: str
    num_tokens: int


class Segment(Frozen):
    """What attention does not leave: a document, a later part of one, or the padding tail."""

    kind: SegmentKind
    first_column: int
    num_tokens: int
    num_labels: int
    runs: tuple[Run, ...]


class SampleRow(Frozen):
    """One row; `number` counts from 0."""

    number: int
    source: str
    num_tokens: int
    num_labels: int
    decoded: bool
    segments: tuple[Segment, ...]


def row_numbers(num_rows: int, *, wanted: int, seed: int) -> list[int]:
    """`wanted` different rows of a pack (all, when it has no more), in order; the same seed gives
    the same rows."""
    return sorted(random.Random(seed).sample(range(num_rows), min(wanted, num_rows)))


def sample_row(view: PackView, number: int, *, source: str, decoder: Decoder | None) -> SampleRow:
    """Row `number`, every token of it."""
    ids, flags = np.asarray(view.ids[number]), np.asarray(view.flags[number])
    starts = np.flatnonzero((flags & START) != 0).tolist()
    bounds = sorted({0, *starts, len(ids)})
    segments: list[Segment] = []
    for first, last in pairwise(bounds):
        labels = (flags[first:last] & LOSS) != 0
        kind: SegmentKind = "continuation" if flags[first] & CONTINUATION else "document"
        if flags[first] & PADDING:
            kind = "padding"
        runs = () if kind == "padding" else _runs(view, ids[first:last], labels, kind, decoder)
        segments.append(
            Segment(
                kind=kind,
                first_column=first,
                num_tokens=last - first,
                num_labels=int(np.count_nonzero(labels)),
                runs=tuple(runs),
            )
        )
    return SampleRow(
        number=number,
        source=source,
        num_tokens=sum(s.num_tokens for s in segments if s.kind != "padding"),
        num_labels=sum(s.num_labels for s in segments),
        decoded=decoder is not None,
        segments=tuple(segments),
    )


def _runs(
    view: PackView,
    ids: Ids,
    labels: npt.NDArray[np.bool_],
    kind: SegmentKind,
    decoder: Decoder | None,
) -> Iterator[Run]:
    """Runs of one segment, in order; together they are all its tokens."""
    tokens = ids.tolist()
    specials: Mapping[int, str] = decoder.specials if decoder else {}
    kinds: list[RunKind] = ["text" if label else "masked" for label in labels.tolist()]
    for at, token in enumerate(tokens):
        if token == view.ledger.bos_id and at == 0 and kind == "document":
            kinds[at] = "bos"
        elif token == view.ledger.eos_id:
            kinds[at] = "eos"
        elif token in specials:
            kinds[at] = "special"
    changes = [at for at in range(1, len(kinds)) if kinds[at] != kinds[at - 1]]
    bounds = [0, *changes, len(kinds)]
    pieces = list(pairwise(bounds))
    texts = _texts(tokens, pieces, kinds, decoder)
    for (first, last), text in zip(pieces, texts, strict=True):
        yield Run(kind=kinds[first], text=text, num_tokens=last - first)


def _texts(
    tokens: Sequence[int],
    pieces: Sequence[tuple[int, int]],
    kinds: Sequence[RunKind],
    decoder: Decoder | None,
) -> Iterator[str]:
    """The text of each piece. Between two tokens that are no text the pieces are decoded together,
    because a character, or the blank before a word, may be spread over two of them."""
    stretch = 0
    shown = ""
    for first, last in pieces:
        if decoder is None:
            yield " ".join(map(str, tokens[first:last]))
        elif kinds[first] not in ("text", "masked"):
            yield "".join(decoder.specials.get(token, "") for token in tokens[first:last])
            stretch, shown = last, ""
        else:
            whole = decoder.text(tokens[stretch:last])
            goes_on = last < len(tokens) and kinds[last] in ("text", "masked")
            upto = whole.rstrip(_REPLACEMENT) if goes_on else whole
            if not upto.startswith(shown):  # a decoder that rewrites what it has said
                yield decoder.text(tokens[first:last])
                stretch, shown = last, ""
                continue
            yield upto[len(shown) :]
            shown = upto
