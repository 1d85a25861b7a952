"""Counts over published rows, from their flags and ids alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from cpt_residual.data.packing.rows import CONTINUATION, LOSS, PADDING, START, Flags, Ids


@dataclass(frozen=True)
class SpecialIds:
    """The ids that open documents (None: none does), end them, and fill rows."""

    bos: int | None
    eos: int
    pad: int


@dataclass(frozen=True)
class RowCounts:
    """What rows hold; adds up over rows in any grouping."""

    rows: int = 0
    tokens: int = 0
    padding: int = 0
    loss_tokens: int = 0
    documents: int = 0
    continuations: int = 0
    bos_tokens: int = 0
    eos_tokens: int = 0

    @classmethod
    def of(cls, ids: Ids, flags: Flags, special: SpecialIds) -> RowCounts:
        """Counts of ids_BL and flags_BL."""
        by_value = np.bincount(flags.ravel(), minlength=16)
        values = np.arange(len(by_value))

        def having(bit: int) -> int:
            return int(by_value[(values & bit) != 0].sum())

        padding = having(PADDING)
        begun = flags == START
        bos_tokens = 0 if special.bos is None else int((ids[begun] == special.bos).sum())
        eos_tokens = int(np.count_nonzero((ids == special.eos) & ((flags & PADDING) == 0)))
        if special.bos == special.eos:
            eos_tokens -= bos_tokens
        return cls(
            rows=len(ids),
            tokens=flags.size - padding,
            padding=padding,
            loss_tokens=having(LOSS),
            documents=int(by_value[START]),
            continuations=int(by_value[START | CONTINUATION]),
            bos_tokens=bos_tokens,
            eos_tokens=eos_tokens,
        )

    def __add__(self, other: RowCounts) -> RowCounts:
        mine, theirs = self.as_dict(), other.as_dict()
        return RowCounts(**{name: mine[name] + theirs[name] for name in mine})

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)
