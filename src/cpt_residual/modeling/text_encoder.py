"""Text to token ids with the `tokenizers` library alone: no transformers, so that a worker process
starts at once and stays small. Pickles by the serialised tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.encoded import EncodedDocuments, Ids

__all__ = ["CACHED_WORDS", "FastTextEncoder"]

CACHED_WORDS = 2000
"""Of which a byte-pair model remembers the ids, the first it meets. The library's 10,000 leave the
processor's own cache, which costs 3 to 10 % of the speed, and 50,000 cost a third."""


@dataclass(frozen=True)
class FastTextEncoder:
    """Documents to ids: BOS where the tokenizer adds it, EOS exactly once, at the end.

    `backend` neither truncates nor pads, and encodes text that looks like a special token as the
    text it is. `bos_id` is None when the tokenizer names none. Loss is on every token but the
    first. A call holds some hundred bytes a token. Raises CompatibilityError when plain text
    becomes EOS.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int

    def __post_init__(self) -> None:
        if isinstance(self.backend.model, tokenizers.models.BPE):
            self.backend.model._resize_cache(CACHED_WORDS)  # noqa: SLF001  it has no other name

    def __call__(self, texts: Sequence[str]) -> EncodedDocuments:
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
        joined = array("I")  # takes a list five times as fast as numpy does
        ends: list[int] = []
        for encoding in encodings:
            ids = encoding.ids
            if not ids or ids[-1] != self.eos_id:
                ids.append(self.eos_id)
            joined.fromlist(ids)
            ends.append(len(joined))
        lengths = np.diff(np.array([0, *ends], dtype=np.int64))
        encoded = EncodedDocuments(np.frombuffer(joined, dtype=np.uint32), lengths)
        self._check_ends(encoded.ids, encoded)
        return encoded

    def __reduce__(self) -> tuple[object, ...]:
        return (_restored, (self.backend.to_str(), self.bos_id, self.eos_id))

    def _check_ends(self, ids: Ids, documents: EncodedDocuments) -> None:
        expected = len(documents)
        if self.bos_id == self.eos_id:  # a tokenizer that opens documents with the same token
            starts = documents.starts[documents.lengths > 1]
            expected += int(np.count_nonzero(ids[starts] == self.eos_id))
        if np.count_nonzero(ids == self.eos_id) != expected:
            raise CompatibilityError(
                f"the tokenizer makes its EOS id {self.eos_id} out of plain text",
                remedy="Document ends could not be told from text: use a tokenizer whose EOS is an"
                " added special token.",
            )


def _restored(serialised: str, bos_id: int | None, eos_id: int) -> FastTextEncoder:
    """The flag about special tokens is no part of a serialised tokenizer."""
    backend = tokenizers.Tokenizer.from_str(serialised)
    backend.encode_special_tokens = True
    return FastTextEncoder(backend, bos_id, eos_id)
