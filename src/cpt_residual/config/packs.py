"""Pack settings: sources, their shares of the tokens, and mixture phases."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import fsum, isclose
from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen, Name, PositiveInt, Share

MAX_SOURCES = 256
"""A source's number is one byte."""


class PackSource(Frozen):
    """One source of a pack. `format=text`: documents + EOS. `format=chat`: dialogues through the
    chat template, never split, loss on the answers only.

    `packing` of text: `concat_chunk` puts documents end to end and cuts every row (no padding; the
    token after a cut loses its label and its context); `best_fit` keeps documents whole where they
    fit into a row and fills longer ones into rows of their own (some padding). The ledger of the
    pack states the price of either.

    With several epochs every text comes k times before any comes k + 1 times (`best_fit` pads its
    open rows at the end of an epoch). Dialogues of a source that needs more than 64 rows may
    wait in open rows while others of the next epoch fill them."""

    corpus: Name
    share: Share = 1.0
    format: Literal["text", "chat"] = "text"
    packing: Literal["concat_chunk", "best_fit"] = "concat_chunk"
    max_epochs: PositiveInt | None = None  # how often it may be read; None: as `repeat` says


class PackPhase(Frozen):
    """A part of a pack with a mixture of its own: `share` is its part of the token budget, `shares`
    the part of each corpus in its tokens (a corpus that is not named has none)."""

    share: Share
    shares: dict[Name, Annotated[float, Field(ge=0.0, le=1.0)]]


class Pack(Frozen):
    """Token ids ready for training, in rows: packed sequences of `sequence_length` tokens.
    `token_budget` counts training tokens, padding excluded.

    `phases`: mixtures one after the other, for example general text first and more of the new
    domain late. Then the sources have no shares of their own, and a pack of a smaller budget is no
    beginning of one of a larger budget, because the phases move with it."""

    tokenizer: Name  # a key of `models`: whose tokenizer is used
    sequence_length: Annotated[int, Field(ge=2)]  # the first token of a row has no label
    token_budget: PositiveInt
    sources: Annotated[list[PackSource], Field(min_length=1, max_length=MAX_SOURCES)]
    repeat: bool = False  # False: too few tokens is an error; True: epochs, each in a new order
    phases: list[PackPhase] = Field(default_factory=list[PackPhase])

    def phase_shares(self, phase: PackPhase) -> tuple[float, ...]:
        """The shares of a phase in the order of the sources."""
        return tuple(phase.shares.get(source.corpus, 0.0) for source in self.sources)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each source's share of the token budget, over all phases; correctly rounded, so that it
        is the same everywhere."""
        if not self.phases:
            return tuple(source.share for source in self.sources)
        parts = [
            [_exact(phase.share) * _exact(share) for share in self.phase_shares(phase)]
            for phase in self.phases
        ]
        return tuple(float(sum(column)) for column in zip(*parts, strict=True))


def _exact(share: float) -> Fraction:
    """What was written, not the nearest binary fraction."""
    return Fraction(repr(share))


def problems_of_pack(place: str, pack: Pack) -> Iterator[str]:
    """What contradicts itself in one pack; `place` is its path in the configuration."""
    for index, source in enumerate(pack.sources):
        if source.format == "chat" and source.packing != "concat_chunk":
            yield f"{place}.sources[{index}].packing: {source.packing}: dialogues are always whole"
    if pack.phases:
        yield from _problems_of_phases(place, pack)
    else:
        yield from _not_one(f"{place}.sources", [source.share for source in pack.sources])
    yield from _less_than_a_row(place, pack)


def _less_than_a_row(place: str, pack: Pack) -> Iterator[str]:
    """Sources that might not get a single row: the mixture is exact to half a row."""
    for source, share in zip(pack.sources, pack.shares, strict=True):
        tokens = share * pack.token_budget
        if len(pack.sources) > 1 and 0 < tokens < pack.sequence_length:
            yield (
                f"{place}: {source.corpus}: share {share:g} of token_budget {pack.token_budget} is "
                f"{tokens:.0f} tokens, less than a row (sequence_length {pack.sequence_length})"
            )


def _problems_of_phases(place: str, pack: Pack) -> Iterator[str]:
    names = [source.corpus for source in pack.sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{place}.phases: {name}: two sources of one corpus cannot be told apart"
    for index, source in enumerate(pack.sources):
        if "share" in source.model_fields_set and source.share != 1.0:
            yield f"{place}.sources[{index}].share: {source.share:g}: the phases say the shares"
    yield from _not_one(f"{place}.phases", [phase.share for phase in pack.phases])
    for number, phase in enumerate(pack.phases):
        where = f"{place}.phases[{number}].shares"
        for name in sorted(set(phase.shares) - set(names)):
            yield f"{where}: {name}: not one of the sources: {', '.join(names)}"
        yield from _not_one(where, list(phase.shares.values()))
    for source, share in zip(pack.sources, pack.shares, strict=True):
        if not share:
            yield f"{place}.phases: {source.corpus}: no phase gives it a share"


def _not_one(place: str, shares: list[float]) -> Iterator[str]:
    total = fsum(shares)
    if not isclose(total, 1.0, rel_tol=0.0, abs_tol=1e-9):
        text = " + ".join(f"{share:g}" for share in shares)
        yield f"{place}: shares {text} = {total:.12g}: must sum to 1"
