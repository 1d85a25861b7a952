"""Limits of text encoded at once and their memory; import-free, for planning."""

from __future__ import annotations

MAX_UNDIVIDED_CHARACTERS = 4_000_000
"""Of a text, or of a part of one, that cannot be cut."""

ENCODING_BYTES_PER_CHARACTER = 400
"""Memory while a text is encoded at once: 150 to 200 for Latin letters, 400 for ideographs and for
dialogues, whose offsets are asked for. Emoji, four bytes each, take up to twice as much."""
