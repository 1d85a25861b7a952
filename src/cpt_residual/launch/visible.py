"""Text of unknown origin made fit for a terminal."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # that make up letters and emoji
_NAMED = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\x1b": "\u241b", "\x7f": "\u2421"}


def visible(text: str) -> str:
    """One line without anything that acts on a terminal: line ends and tabs as arrows, other
    control characters and those that turn the writing direction by their code."""
    return text if text.isprintable() else "".join(map(_shown, text))


def visible_lines(text: str) -> str:
    """The same line by line: ends of lines stay."""
    return "\n".join(map(visible, text.split("\n")))


def _shown(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    acts = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if acts and character not in _JOINERS:
        return f"\\u{ord(character):04x}"
    return character
