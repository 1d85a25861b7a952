"""Names, numbers and dates in running text: where they stand, what they look like, how to find
them again. Rules, no model: the same text gives the same spans on every machine."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from cpt_residual.config.cloze import SpanKind

_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December"
    "|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(
    rf"(?<![\w.,-])(?:{_DAY} (?:{_MONTHS})(?:,? \d{{4}})?"
    rf"|(?:{_MONTHS}) {_DAY}(?:, \d{{4}})?"
    rf"|(?:{_MONTHS}) \d{{4}}"
    r"|\d{4}-\d\d-\d\d)(?![\w-])"
)
_NUMBER = re.compile(r"(?<![\w.,:/-])\d(?:[\d.,:]*\d)(?![\w/-]|[.,:]\d)")
_WORD = re.compile(r"[^\W\d_][\w'\u2019-]*")
_ANY_WORD = re.compile(r"\w+")
_LINKS = frozenset(("of", "de", "van", "von", "der", "den", "la", "du", "del", "di"))
"""Small words that a name may hold between two capitalised ones."""

_MIN_NAME_CHARACTERS = 3
_MAX_NAME_WORDS = 5
_MAX_SPAN_CHARACTERS = 60
_OPENING = "\"'(\u201c\u2018\u00ab["
_SENTENCE_ENDS = ".!?:;\u2026\u3002*|\u2022"


@dataclass(frozen=True, slots=True)
class Span:
    """`text` stands at character `start` of its document."""

    kind: SpanKind
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def find_spans(text: str, kinds: Collection[SpanKind]) -> list[Span]:
    """The spans of `text` in order; none overlaps another. What is part of a date is neither a
    number nor a name, whether or not dates are asked for.

    date: a day or a year with a month (English), or 2024-12-31; number: two digits or more, with
    the marks inside it; name: up to five capitalised words on one line.
    """
    dates = [Span("date", match.start(), match[0]) for match in _DATE.finditer(text)]
    found: list[Span] = []
    if "date" in kinds:
        found += dates
    if "number" in kinds:
        numbers = (Span("number", match.start(), match[0]) for match in _NUMBER.finditer(text))
        found += (span for span in numbers if not _overlaps(span, dates))
    if "name" in kinds:
        found += (span for span in _names(text) if not _overlaps(span, dates))
    short = (span for span in found if len(span.text) <= _MAX_SPAN_CHARACTERS)
    return sorted(short, key=lambda span: span.start)


def starts_sentence(text: str, start: int) -> bool:
    """Whether a capital at `start` may be due to its place alone."""
    before = text[max(0, start - 8) : start].rstrip(" " + _OPENING)
    return not before or before[-1] in _SENTENCE_ENDS or before[-1].isspace()


def lower_words(text: str) -> list[str]:
    """The words of `text` as they are compared: lower case, one Unicode form, no marks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _ANY_WORD.findall(text.lower())


def key_of(text: str) -> str:
    """The same for every way of writing a span that counts as the same."""
    return " ".join(lower_words(text))


def telling_words(text: str) -> set[str]:
    """Words of `text` that give a span away where they were said before: numbers, and words of
    three letters or more that do not merely link others."""
    return {
        word
        for word in lower_words(text)
        if word[0].isdigit() or (len(word) >= 3 and word not in _LINKS)
    }


def shape_of(text: str) -> str:
    """What a span looks like: `Aa Aa` for a name of two words, `9,999` for a number (one 9 per
    digit), `9 Aa 9999` for a date."""
    shape: list[str] = []
    for character in text:
        if character.isdigit():
            shape.append("9")
            continue
        kind = character
        if character.isalpha():
            kind = "A" if character.isupper() else "a"
        if not (character.isalpha() and shape and shape[-1] == kind):
            shape.append(kind)
    return "".join(shape)


class SpanIndex:
    """Which of a fixed set of spans a text holds: as whole words, however they are written.

    Memory: about 600 bytes a span. Time: ten to twenty million characters a second.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        # By its longest word, which is the rarest as a rule: (key, its words, place of that word).
        self._by_word: dict[str, list[tuple[str, list[str], int]]] = {}
        for key in keys:
            words = key.split(" ")
            place = max(range(len(words)), key=lambda k: len(words[k]))
            self._by_word.setdefault(words[place], []).append((key, words, place))
        self._anchors = frozenset(self._by_word)

    def found_in(self, text: str) -> set[str]:
        """The keys of all spans that `text` holds."""
        words = lower_words(text)
        hits = self._anchors.intersection(words)
        found: set[str] = set()
        if not hits:
            return found
        for place, word in enumerate(words):
            if word in hits:
                for key, span, offset in self._by_word[word]:
                    first = place - offset
                    if first >= 0 and words[first : first + len(span)] == span:
                        found.add(key)
        return found


def _names(text: str) -> Iterator[Span]:
    """Runs of capitalised words with one space between, small words inside a run included."""
    run: list[re.Match[str]] = []
    for match in _WORD.finditer(text):
        if run and text[run[-1].end() : match.start()] != " ":
            yield from _name(text, run)
            run = []
        if match[0][0].isupper() or (run and match[0] in _LINKS):
            run.append(match)
        else:
            yield from _name(text, run)
            run = []
    yield from _name(text, run)


def _name(text: str, run: list[re.Match[str]]) -> Iterator[Span]:
    words = run
    while words and words[-1][0] in _LINKS:
        words = words[:-1]
    if not words or len(words) > _MAX_NAME_WORDS:
        return
    start, end = words[0].start(), _end_of_name(words[-1])
    before = text[start - 1] if start else " "
    if end - start >= _MIN_NAME_CHARACTERS and not (before.isalnum() or before in "_@#/.-"):
        yield Span("name", start, text[start:end])


def _end_of_name(word: re.Match[str]) -> int:
    """Where `word` ends without its possessive."""
    stem = word[0].rstrip("'\u2019-")
    for ending in ("'s", "\u2019s"):
        stem = stem.removesuffix(ending)
    return word.start() + len(stem)


def _overlaps(span: Span, others: list[Span]) -> bool:
    """`others`: in order, none overlaps another."""
    following = bisect_right(others, span.start, key=lambda other: other.end)
    return following < len(others) and others[following].start < span.end
