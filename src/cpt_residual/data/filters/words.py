"""Word normalisation for comparisons: case folded, no punctuation, Unicode NFKC."""

from __future__ import annotations

import re
import unicodedata

# Scripts that write no blanks between words; each of their letters counts as a word: Thai, Lao,
# Myanmar, Khmer, Kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def folded_words(text: str) -> list[str]:
    """The words of `text` in order: NFKC, case folded, runs of letters and digits. All else ends a
    word, also `_` and the apostrophe ("don't" is two words)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())
