"""Index of word n-grams of evaluation prompts: which questions share one with a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpt_residual.config.filters import Contamination


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Words `start` to `end` of a document are an n-gram of `question` (its number)."""

    question: int
    start: int
    end: int


class NgramIndex:
    """Built from all questions at once; then documents are looked up one by one.

    num_ngrams, num_shared: different n-grams by task, looked for and left out because too many
    questions of the task share them. too_short, checked: numbers of questions.
    Memory: some 300 bytes for each different n-gram. A document takes time in proportion to its
    words.
    """

    def __init__(
        self, questions: Sequence[Sequence[str]], tasks: Sequence[int], settings: Contamination
    ) -> None:
        """questions: the words of each; tasks: the number of the task each belongs to."""
        self._min_words = settings.min_words
        self.num_ngrams: dict[int, int] = dict.fromkeys(tasks, 0)
        self.num_shared: dict[int, int] = dict.fromkeys(tasks, 0)
        self.too_short: set[int] = set()
        self.checked: set[int] = set()
        owners: dict[tuple[int, str], list[int]] = {}
        for number, (words, task) in enumerate(zip(questions, tasks, strict=True)):
            length = min(len(words), settings.ngram_words)
            if length < settings.min_words:
                self.too_short.add(number)
                continue
            for at in range(len(words) - length + 1):
                found = owners.setdefault((task, " ".join(words[at : at + length])), [])
                if number not in found[-1:]:
                    found.append(number)
        self._questions: dict[str, list[int]] = {}
        self._beginnings: set[str] = set()  # the first `min_words` words of all n-grams
        lengths: set[int] = set()
        for (task, ngram), found in owners.items():
            if len(found) > settings.max_questions:
                self.num_shared[task] += 1
                continue
            self.num_ngrams[task] += 1
            self._questions.setdefault(ngram, []).extend(found)
            self.checked.update(found)
            words = ngram.split(" ")
            self._beginnings.add(" ".join(words[: settings.min_words]))
            lengths.add(len(words))
        self._lengths = sorted(lengths)

    def find(self, words: Sequence[str]) -> list[Occurrence]:
        """Every place of a document where an n-gram of a question stands, in order of length, then
        place, then question."""
        size = self._min_words
        places = [
            at
            for at in range(len(words) - size + 1)
            if " ".join(words[at : at + size]) in self._beginnings
        ]
        return [
            Occurrence(question, at, at + length)
            for length in self._lengths
            for at in places
            if at + length <= len(words)
            for question in sorted(self._questions.get(" ".join(words[at : at + length]), ()))
        ]
