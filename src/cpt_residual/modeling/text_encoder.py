"""Text to token ids with the `tokenizers` library alone: no transformers, so that a worker process
starts at once and stays small. Pickles by the serialised tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import tokenizers

from cpt_residual.errors import CompatibilityError, CorpusError
from cpt_residual.modeling.added_tokens import NO_ADDED_TOKENS, AddedTokens
from cpt_residual.modeling.encoded import EncodedDocuments, Ids
from cpt_residual.modeling.encoding_limits import MAX_UNDIVIDED_CHARACTERS
from cpt_residual.modeling.text_chunks import CutRule, chunks, cut_rule, together, without_prefix

CACHED_WORDS = 2000
"""Of which a byte-pair model remembers the ids, the first it meets. The library's 10,000 leave the
processor's own cache, which costs 3 to 10 % of the speed, and 50,000 cost a third."""

_CHUNK_CHARACTERS = 1 << 17
_CHUNKS_AT_ONCE = 4


@dataclass(frozen=True)
class FastTextEncoder:
    """Documents to ids: BOS where the tokenizer adds it, EOS exactly once, at the end.

    `backend` neither truncates nor pads, and encodes text that looks like a special token as the
    text it is. Text that is an added token which is not marked special becomes that token's id.
    `bos_id` is None when the tokenizer names none. Loss is on every token but the first.

    Texts longer than `chunk_characters` are encoded part by part where that is known to give the
    same ids (`text_chunks`), so a call holds the ids and some 200 MB whatever their length, or what
    the longest part without a place to cut takes. Raises CorpusError for a text of more than
    MAX_UNDIVIDED_CHARACTERS that cannot be cut, and CompatibilityError when plain text becomes EOS.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int
    chunk_characters: int = _CHUNK_CHARACTERS
    added: AddedTokens = NO_ADDED_TOKENS  # counted in what is encoded

    def __post_init__(self) -> None:
        if isinstance(self.backend.model, tokenizers.models.BPE):
            self.backend.model._resize_cache(CACHED_WORDS)  # noqa: SLF001  it has no other name

    def __call__(self, texts: Sequence[str]) -> EncodedDocuments:
        encoded = self._ids_of(texts)
        return replace(encoded, uses=self.added.uses(texts, encoded))

    def _ids_of(self, texts: Sequence[str]) -> EncodedDocuments:
        if any(len(text) > self.chunk_characters for text in texts):
            return EncodedDocuments.joined([self._encoded([self._long_ids(t)]) for t in texts])
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
        return self._encoded(encoding.ids for encoding in encodings)

    def _encoded(self, documents: Iterable[list[int] | array[int]]) -> EncodedDocuments:
        joined = array("I")  # takes a list five times as fast as numpy does
        ends: list[int] = []
        for ids in documents:
            joined.extend(ids) if isinstance(ids, array) else joined.fromlist(ids)
            if len(joined) == (ends[-1] if ends else 0) or joined[-1] != self.eos_id:
                joined.append(self.eos_id)
            ends.append(len(joined))
        lengths = np.diff(np.array([0, *ends], dtype=np.int64))
        encoded = EncodedDocuments(np.frombuffer(joined, dtype=np.uint32), lengths)
        self._check_ends(encoded.ids, encoded)
        return encoded

    def _long_ids(self, text: str) -> array[int]:
        """The ids that the text has as a whole, before EOS."""
        before, after = self._added_ids
        ids = array("I", before)
        parts = chunks(text, self._rule, self.chunk_characters)
        backend = self.backend
        for some in together(parts, _CHUNKS_AT_ONCE * self.chunk_characters):
            for part in some:
                require_room(part, text)
            for encoding in backend.encode_batch_fast(some, add_special_tokens=False):
                ids.fromlist(encoding.ids)
            backend = self._later
        ids.extend(after)
        return ids

    @cached_property
    def _rule(self) -> CutRule | None:
        return cut_rule(self.backend)

    @cached_property
    def _later(self) -> tokenizers.Tokenizer:
        return without_prefix(self.backend)

    @cached_property
    def _added_ids(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after every text."""
        plain = self.backend.encode("a", add_special_tokens=False).ids
        whole = self.backend.encode("a", add_special_tokens=True).ids
        for first in range(len(whole) - len(plain) + 1):
            if whole[first : first + len(plain)] == plain:
                return whole[:first], whole[first + len(plain) :]
        raise AssertionError("a post-processor only adds")

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _restored,
            (self.backend.to_str(), self.bos_id, self.eos_id, self.chunk_characters, self.added),
        )

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


def require_room(part: str, text: str) -> None:
    """Raise CorpusError unless `part` of `text` is short enough to be encoded at once."""
    if len(part) > MAX_UNDIVIDED_CHARACTERS:
        raise CorpusError(
            f"a document of {len(text):,} characters cannot be encoded part by part",
            problems=[
                f"it begins {text[:60]!r}",
                f"{len(part):,} characters without a place where this tokenizer surely divides",
            ],
            remedy=f"At most {MAX_UNDIVIDED_CHARACTERS:,} are encoded at once, for they take"
            " hundreds of bytes each: divide the document, or leave it out.",
        )


def _restored(
    serialised: str, bos_id: int | None, eos_id: int, chunk_characters: int, added: AddedTokens
) -> FastTextEncoder:
    """The flag about special tokens is no part of a serialised tokenizer."""
    backend = tokenizers.Tokenizer.from_str(serialised)
    backend.encode_special_tokens = True
    return FastTextEncoder(backend, bos_id, eos_id, chunk_characters, added)
