"""Documents as token ids, end to end: what encoders give and packs are made of (numpy only).

N tokens of D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
Loss = npt.NDArray[np.bool_]
Uses = npt.NDArray[np.int64]
"""uses_U3: (number of the document, id of an added token, how often), by document and id."""

NO_USES: Uses = np.empty((0, 3), dtype=np.int64)
Lengths = npt.NDArray[np.int64]

Encoded = tuple[Ids, Loss]
"""One document's ids and, for each, whether its label bears loss (never the first)."""


@dataclass(frozen=True, eq=False)
class EncodedDocuments:
    """ids_N of all documents, lengths_D, and loss_N (None: all but each document's first token);
    uses_U3 of added tokens, where they are counted.

    No document is empty."""

    ids: Ids
    lengths: Lengths
    loss: Loss | None = None
    uses: Uses = field(default_factory=lambda: NO_USES)

    @classmethod
    def of(cls, documents: Sequence[Encoded]) -> EncodedDocuments:
        """Join documents that were encoded one by one."""
        if not documents:
            return cls(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))
        return cls(
            ids=np.concatenate([ids for ids, _ in documents]),
            lengths=np.array([len(ids) for ids, _ in documents], dtype=np.int64),
            loss=np.concatenate([loss for _, loss in documents]),
        )

    @classmethod
    def joined(cls, parts: Sequence[EncodedDocuments]) -> EncodedDocuments:
        """The documents of all parts (at least one), in order."""
        if len(parts) == 1:
            return parts[0]
        plain = all(part.loss is None for part in parts)
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            loss=None if plain else np.concatenate([part.loss_or_default() for part in parts]),
            uses=_uses_of(parts),
        )

    @property
    def starts(self) -> Lengths:
        """starts_D: where each document begins in `ids`."""
        return np.cumsum(self.lengths) - self.lengths

    def loss_or_default(self) -> Loss:
        """loss_N, made when it is the default."""
        if self.loss is not None:
            return self.loss
        loss = np.ones(len(self.ids), dtype=np.bool_)
        loss[self.starts] = False
        return loss

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Encoded]:
        loss, first = self.loss_or_default(), 0
        for length in self.lengths.tolist():
            yield self.ids[first : first + length], loss[first : first + length]
            first += length


def _uses_of(parts: Sequence[EncodedDocuments]) -> Uses:
    found: list[Uses] = [NO_USES]
    before = 0
    for part in parts:
        found.append(part.uses + np.array([before, 0, 0], dtype=np.int64))
        before += len(part)
    return np.concatenate(found)
