"""Index of word n-grams of evaluation prompts.

A word is a random 64-bit number (a digest of it), an n-gram the polynomial of its words' numbers
modulo 2^64, computed for all places of a document at once from cumulative sums. Two different
n-grams have the same number with a probability of about 2^-64 for a pair: one false match is
expected in some 2e13 words of text against a million n-grams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_MULTIPLIER, -1, 2**64)


@dataclass(frozen=True)
class NgramSettings:
    """See `config.filters.Contamination`."""

    ngram_words: int
    min_words: int
    max_questions: int


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Words `start` to `end` of a document are an n-gram of `question` (its number)."""

    question: int
    start: int
    end: int


@dataclass(frozen=True)
class _Table:
    """n-grams of one length: `number` in rising order, one entry for each of their questions."""

    length: int
    number: Numbers
    question: Places


class NgramIndex:
    """Built from all questions at once; then documents are looked up one by one.

    Memory: 16 bytes for each n-gram of each question, and some 150 bytes for each different word
    of the questions. A document takes time in proportion to its words.
    """

    def __init__(
        self, questions: Sequence[Sequence[str]], tasks: Sequence[int], settings: NgramSettings
    ) -> None:
        """questions: the words of each; tasks: the number of the task each belongs to."""
        self._settings = settings
        self._words: dict[str, int] = {}
        self._powers, self._inverses = _powers(_MULTIPLIER, 1024), _powers(_INVERSE, 1024)
        self.num_ngrams: dict[int, int] = dict.fromkeys(tasks, 0)
        """Different n-grams looked for, by task."""
        self.num_shared: dict[int, int] = dict.fromkeys(tasks, 0)
        """Different n-grams left out because too many questions of the task share them."""
        self.too_short: set[int] = set()
        self.checked: set[int] = set()
        self._beginnings: Numbers = np.empty(0, np.uint64)
        self._tables = self._built(questions, np.asarray(tasks, np.int64))

    def find(self, words: Sequence[str]) -> list[Occurrence]:
        """Every place of a document where an n-gram of a question stands, in order of length, then
        place, then question."""
        known = self._words
        values = np.fromiter((known.get(word, 0) for word in words), np.uint64, len(words))
        at = np.flatnonzero(self._begins(values))
        if at.size == 0:
            return []
        found: list[Occurrence] = []
        for table in self._tables:
            places = at[at + table.length <= len(words)]
            numbers = self._windows(values, table.length)[places]
            first = np.searchsorted(table.number, numbers, side="left")
            last = np.searchsorted(table.number, numbers, side="right")
            for place, begin, end in zip(places, first, last, strict=True):
                start = int(place)
                found += [
                    Occurrence(int(question), start, start + table.length)
                    for question in table.question[begin:end]
                ]
        return found

    def _begins(self, values: Numbers) -> npt.NDArray[np.bool_]:
        """Where the first `min_words` words are those of some n-gram."""
        numbers = self._windows(values, self._settings.min_words)
        if numbers.size == 0 or self._beginnings.size == 0:
            return np.zeros(0, np.bool_)
        place = np.searchsorted(self._beginnings, numbers)
        place[place == self._beginnings.size] = 0
        return self._beginnings[place] == numbers

    def _windows(self, values: Numbers, length: int) -> Numbers:
        """The number of the n-gram that begins at each place of `values`."""
        num_windows = values.size - length + 1
        if num_windows <= 0:
            return np.empty(0, np.uint64)
        if values.size >= self._powers.size:
            self._powers = _powers(_MULTIPLIER, 2 * values.size)
            self._inverses = _powers(_INVERSE, 2 * values.size)
        sums = np.zeros(values.size + 1, np.uint64)
        np.cumsum(values * self._powers[: values.size], out=sums[1:])
        return (sums[length:] - sums[:num_windows]) * self._inverses[:num_windows]

    def _built(self, questions: Sequence[Sequence[str]], tasks: Places) -> tuple[_Table, ...]:
        beginnings: list[Numbers] = []
        by_length: dict[int, list[tuple[Numbers, Numbers, int]]] = {}
        for number, words in enumerate(questions):
            length = min(len(words), self._settings.ngram_words)
            if length < self._settings.min_words:
                self.too_short.add(number)
                continue
            values = np.fromiter((self._value(word) for word in words), np.uint64, len(words))
            ngrams = self._windows(values, length)
            begins = self._windows(values, self._settings.min_words)[: ngrams.size]
            by_length.setdefault(length, []).append((ngrams, begins, number))
        tables: list[_Table] = []
        for length, parts in sorted(by_length.items()):
            ngrams = np.concatenate([part[0] for part in parts])
            begins = np.concatenate([part[1] for part in parts])
            owners = np.repeat([part[2] for part in parts], [part[0].size for part in parts])
            keep = self._not_shared(ngrams, owners, tasks)
            beginnings.append(begins[keep])
            tables.append(_Table(length, ngrams[keep], owners[keep]))
            self.checked.update(np.unique(owners[keep]).tolist())
        self._beginnings = np.unique(np.concatenate([*beginnings, self._beginnings]))
        return tuple(tables)

    def _not_shared(self, ngrams: Numbers, owners: Places, tasks: Places) -> Places:
        """Which entries to keep, in rising order of n-gram, each question once; counts by task."""
        order = np.lexsort((owners, tasks[owners], ngrams))
        new_pair = _changes(ngrams[order], owners[order])
        order = order[new_pair]
        group = np.cumsum(_changes(ngrams[order], tasks[owners[order]])) - 1
        sizes = np.bincount(group)
        first_of_group = np.flatnonzero(np.diff(group, prepend=-1))
        shared = sizes > self._settings.max_questions
        for at, is_shared in zip(first_of_group, shared, strict=True):
            counts = self.num_shared if is_shared else self.num_ngrams
            counts[int(tasks[owners[order[at]]])] += 1
        return order[~shared[group]]

    def _value(self, word: str) -> int:
        value = self._words.get(word)
        if value is None:
            digest = hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest()
            value = self._words[word] = int.from_bytes(digest, "little") | 1
        return value


def _powers(base: int, num: int) -> Numbers:
    """base^0 ... base^(num - 1) modulo 2^64."""
    factors = np.full(num, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _changes(
    first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]
) -> npt.NDArray[np.bool_]:
    """Where a pair is not the pair before it."""
    changes = np.ones(first.size, np.bool_)
    changes[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return changes
