"""The filters between a reader and a corpus. Each is off (`null`) unless an experiment names it.

Their order is fixed and is the order of the fields of `Filters`, whatever the order in the file:
what fixes text comes first, then what is cheap, then what has to remember other documents, and the
contamination check last, so that it speaks of the documents that are really trained on.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cpt_residual.base_model import Frozen, Line, PositiveInt, Share


def _written_date(value: object) -> object:
    """Only what is written as a date is one; pydantic would take numbers for seconds since 1970."""
    if isinstance(value, date):
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        return date.fromisoformat(value)
    raise ValueError("a day is written as YYYY-MM-DD")


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
Day = Annotated[date, BeforeValidator(_written_date)]
_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa
fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka
kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc
om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt
ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""
LANGUAGES = frozenset(_CODES.split())
"""What py3langid 0.4 knows (ISO 639), and `zxx`: no language, such as identifiers or markup."""


class Normalise(Frozen):
    """Bring text to one written form; a document that is blank afterwards is dropped.

    unicode_form: NFC composes letters and marks and changes nothing to be seen; NFKC also replaces
    ligatures, full-width forms and the like; `keep` leaves all as it is.
    line_ends: CR LF, CR, vertical tab, form feed and NEL (U+0085) become LF.
    control_characters: what is left of Unicode's category Cc, but for tab and LF, is removed.
    """

    unicode_form: Literal["NFC", "NFKC", "keep"] = "NFC"
    line_ends: bool = True
    control_characters: bool = True


class DateRange(Frozen):
    """Keep the documents of some days (UTC); both ends are included.

    field: where a record has its date: `YYYY-MM-DD`, alone or with a time of day; a time without an
    offset is taken as UTC.
    unreadable: a record without such a date is an error (`fail`) or is dropped and counted.
    """

    field: Line = "date"
    not_before: Day | None = None
    not_after: Day | None = None
    unreadable: Literal["fail", "drop"] = "fail"

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.not_before is None and self.not_after is None:
            raise ValueError("give not_before, not_after or both")
        if self.not_before and self.not_after and self.not_before > self.not_after:
            raise ValueError(
                f"no day is in it: not_before {self.not_before} is after {self.not_after}"
            )
        return self


class Length(Frozen):
    """Keep documents of `min_characters` to `max_characters` Unicode characters, ends included."""

    min_characters: PositiveInt | None = None
    max_characters: PositiveInt | None = None

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.min_characters is None and self.max_characters is None:
            raise ValueError("give min_characters, max_characters or both")
        if (self.min_characters or 0) > (self.max_characters or float("inf")):
            raise ValueError(
                f"no length is in it: min_characters {self.min_characters} is above "
                f"max_characters {self.max_characters}"
            )
        return self


class Language(Frozen):
    """Keep documents that py3langid takes for one of the languages `keep` (ISO 639 codes).

    min_probability: how sure it has to be, among all languages it knows.
    first_characters: it looks at the document's beginning only.
    """

    keep: Annotated[list[str], Field(min_length=1)]
    min_probability: Share = 0.5
    first_characters: PositiveInt = 2000

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: list[str]) -> list[str]:
        unknown = [f"'{name}'" for name in keep if name not in LANGUAGES]
        if unknown:
            raise ValueError(
                f"unknown language {', '.join(unknown)}; known are codes such as en, de or zh "
                "(all are in the list of py3langid)"
            )
        return keep


class ExactDedup(Frozen):
    """Keep the first of documents that are the same.

    compare: `text` after NFC with every run of white space as one blank; `words` also without case
    and punctuation.
    """

    compare: Literal["text", "words"] = "text"


class NearDedup(Frozen):
    """Keep the first of documents that are nearly the same (MinHash, Broder 1997, with LSH).

    threshold: the estimated Jaccard similarity of two documents' sets of shingles from which on
    they are the same; shingle_words: the length of a shingle; num_perm: the length of a signature
    (the estimate's standard error is at most 0.5 / sqrt(num_perm)); seed: of its hash functions.
    """

    threshold: Share = 0.8
    shingle_words: PositiveInt = 5
    num_perm: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1


class Contamination(Frozen):
    """Look for the questions of the evaluation's suites in the corpus, by word n-grams.

    action: `drop` the documents that hold one, or only `report` them.
    ngram_words: how many words in a row, in lower case and without punctuation, have to be the same
    (13 as in Brown et al. 2020).
    min_words: shorter questions than an n-gram are looked for as a whole, but those of fewer words
    are not looked for, only counted.
    max_questions: an n-gram that more questions of one task share is the wording of the task, not
    of a question, and is not looked for.
    """

    action: Literal["drop", "report"]
    ngram_words: Annotated[int, Field(ge=2, le=100)] = 13
    min_words: Annotated[int, Field(ge=2, le=100)] = 8
    max_questions: PositiveInt = 10

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_words > self.ngram_words:
            raise ValueError(f"min_words {self.min_words} is above ngram_words {self.ngram_words}")
        return self


class Filters(Frozen):
    """What is done to the documents of a corpus, in this order."""

    normalise: Normalise | None = None
    date: DateRange | None = None
    length: Length | None = None
    language: Language | None = None
    exact_dedup: ExactDedup | None = None
    near_dedup: NearDedup | None = None
    contamination: Contamination | None = None
