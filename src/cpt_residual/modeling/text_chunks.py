r"""Where a long text can be cut so that its parts, encoded one by one, give the ids of the whole.

A tokenizer extracts added tokens, normalises what lies between them, divides it into words and
encodes word by word. A place is safe when every one of these steps treats what is before and after
it apart. That is decided here from the serialised tokenizer, for the layouts whose steps are known:

* Normalisers work character by character, and nothing composes with an ASCII character before it.
* Regular expressions match from left to right without looking back, so the words after a place
  depend on the text after it alone, if no word can lie across. None of `_ALTERNATIVES` matches a
  non-space followed by U+0020, an ASCII letter followed by another ASCII character but a letter or
  an apostrophe, or an ideograph followed by a line feed or a full stop.
* Where a byte-pair model gets the text undivided (Llama, Gemma), it never joins two symbols
  across such a space when none of its merges ends one symbol without and begins the next with it.

All else has no rule, and is encoded whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import cast

import tokenizers

CutRule = re.Pattern[str]
"""Matches, without width, where a text may be cut."""

Section = Mapping[str, object]

_MARK = "\u2581"
_AT_SPACES = re.compile(rf"(?<=[^\s{_MARK}])(?= )")
_ANYWHERE = re.compile(
    rf"(?<=[^\s{_MARK}])(?= )"
    r"|(?<=[A-Za-z])(?=[\x00-\x26\x28-\x40\x5b-\x60\x7b-\x7f])"
    "|(?<=[\u4e00-\u9fcf])(?=[\n\u3002\uff0c\u3001])"
)

_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ALTERNATIVES = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ENDINGS, "'(?i:[sdmt]|ll|ve|re)"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+"),
    *(rf"{_CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{end}" for end in ("", _ENDINGS + "?")),
    *(rf"{_CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{end}" for end in ("", _ENDINGS + "?")),
    *(r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]++"),
    *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
)
"""Of the expressions of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2, OLMo 2, Tekken and their kin."""

_CHARACTERWISE = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend")


def chunks(text: str, rule: CutRule | None, size: int) -> Iterator[str]:
    """`text` in parts of `size` characters and as many more as it takes to find a place to cut."""
    first = 0
    while first < len(text):
        found = rule.search(text, first + size) if rule else None
        last = found.start() if found else len(text)
        yield text[first:last]
        first = last


def together(parts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Consecutive parts of at most `size` characters in all; only a longer part is alone in more.
    The first part comes alone."""
    group: list[str] = []
    num_characters = size  # so that nothing joins the first
    for part in parts:
        if group and num_characters + len(part) > size:
            yield group
            group, num_characters = [], 0
        group.append(part)
        num_characters += len(part)
    if group:
        yield group


def cut_rule(backend: tokenizers.Tokenizer) -> CutRule | None:
    """Where texts may be cut for `backend`; None where no place is known to be safe. Takes as long
    as it takes to serialise the tokenizer."""
    layout = cast("Section", json.loads(backend.to_str()))
    normalizers = _steps(layout["normalizer"], "normalizers")
    if not all(_is_characterwise(each) for each in normalizers):
        return None
    steps = _steps(layout["pre_tokenizer"], "pretokenizers")
    rule = _word_rule(normalizers, steps)
    model = cast("Section", layout["model"])
    if rule is None and _keeps_spaces_first(model, _undivided_mark(normalizers, steps)):
        rule = _AT_SPACES
    if rule is None or model.get("dropout"):
        return None
    return _beside_added_tokens(rule, layout, normalizers)


def without_prefix(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer for what is not the beginning of a text: `backend` without its `Prepend`."""
    layout = json.loads(backend.to_str())
    steps = _steps(layout["normalizer"], "normalizers")
    if not any(step["type"] == "Prepend" for step in steps):
        return backend
    kept = [step for step in steps if step["type"] != "Prepend"]
    layout["normalizer"] = {"type": "Sequence", "normalizers": kept}
    made = tokenizers.Tokenizer.from_str(json.dumps(layout))
    made.encode_special_tokens = backend.encode_special_tokens
    return made


def _steps(section: object, name: str) -> list[Section]:
    """The steps of a section, one after the other."""
    if section is None:
        return []
    step = cast("Section", section)
    if step["type"] != "Sequence":
        return [step]
    inner = cast("Sequence[object]", step[name])
    return [each for part in inner for each in _steps(part, name)]


def _is_characterwise(step: Section) -> bool:
    return step["type"] in _CHARACTERWISE or _marks_spaces(step)


def _marks_spaces(step: Section) -> bool:
    is_space = step.get("pattern") == {"String": " "}
    return step["type"] == "Replace" and is_space and step.get("content") == _MARK


def _word_rule(normalizers: Sequence[Section], steps: Sequence[Section]) -> CutRule | None:
    """Where the first step that divides at spaces divides; those before it may only tell digits
    and punctuation from the rest, and those after it must work inside the words."""
    marked = any(_marks_spaces(each) for each in normalizers)
    dividing = list(dropwhile(lambda step: step["type"] in ("Digits", "Punctuation"), steps))
    if not dividing or not all(_works_inside_words(step) for step in dividing[1:]):
        return None
    step = dividing[0]
    match step["type"]:
        case "Metaspace":
            return _AT_SPACES if step.get("split", True) else None
        case "WhitespaceSplit" | "Whitespace" if not marked:
            return _AT_SPACES
        case "ByteLevel" if step.get("use_regex", True) and not marked:
            return _AT_SPACES if step["add_prefix_space"] else _ANYWHERE
        case "Split" if not marked and _divides_at_known_places(step):
            return _ANYWHERE if not _adds_spaces(steps) else _AT_SPACES
        case _:
            return None


def _works_inside_words(step: Section) -> bool:
    """Whether a word becomes the same wherever it stands. A Metaspace may open the first word of
    all, and no other."""
    if step["type"] == "Metaspace":
        return step["prepend_scheme"] != "first"
    return step["type"] in ("ByteLevel", "Digits", "Punctuation", "Split")


def _adds_spaces(steps: Sequence[Section]) -> bool:
    return any(step.get("add_prefix_space") for step in steps)


def _divides_at_known_places(step: Section) -> bool:
    expression = cast("Section", step["pattern"]).get("Regex")
    if not isinstance(expression, str):
        return False
    alternatives = _alternatives(expression)
    whole = r"\s+" in alternatives and any(r"\p{L}+" in a or r"\p{Lo}" in a for a in alternatives)
    keeps_matches = step["behavior"] == ("Removed" if step["invert"] else "Isolated")
    return whole and keeps_matches and all(each in _ALTERNATIVES for each in alternatives)


def _alternatives(expression: str) -> list[str]:
    """What stands between the bars that are in no group; no class of ours has a bar in it."""
    parts, depth = [""], 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _keeps_spaces_first(model: Section, mark: str | None) -> bool:
    """Whether a byte-pair model that gets the text undivided, with `mark` for every space, joins
    nothing to a space after it."""
    vocab = cast("Mapping[str, int]", model.get("vocab") or {})
    plain = not any(
        model.get(name)
        for name in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    )
    merges = cast("Sequence[str | Sequence[str]]", model.get("merges") or ())
    return (
        mark is not None
        and model.get("type") == "BPE"
        and plain
        and mark in vocab
        and not any(_joins_across(each, mark) for each in merges)
    )


def _undivided_mark(normalizers: Sequence[Section], steps: Sequence[Section]) -> str | None:
    """What stands for a space where the model gets the text undivided; None where it does not."""
    match [step["type"] for step in steps]:
        case ["Metaspace"] if not steps[0]["split"]:
            # Llama of transformers 5; nothing is put before a text that begins with a space.
            return _MARK if steps[0]["replacement"] == _MARK else None
        case _ if any(_marks_spaces(each) for each in normalizers):
            # Gemma divides at spaces when there are none any more.
            at_spaces = (
                step["type"] == "Split" and step.get("pattern") == {"String": " "} for step in steps
            )
            return _MARK if all(at_spaces) else None
        case []:
            return " "
        case _:
            return None


def _joins_across(merge: str | Sequence[str], mark: str) -> bool:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return second.startswith(mark) and not first.endswith(mark)


def _beside_added_tokens(
    rule: CutRule, layout: Section, normalizers: Sequence[Section]
) -> CutRule | None:
    """`rule` without the places inside added tokens that are found in text (text that looks like a
    special token stays text); None where one of them looks at what is around it."""
    found = [
        token for token in cast("Sequence[Section]", layout["added_tokens"]) if not token["special"]
    ]
    if found and any(step["type"] == "Prepend" for step in normalizers):
        return None  # text after one begins anew
    outside: list[str] = []
    for token in found:
        content = cast("str", token["content"])
        inside = [match.start() for match in rule.finditer(content)]
        if token["single_word"] or token["rstrip"] or (inside and token["normalized"]):
            return None
        parts = [(re.escape(content[:at]), re.escape(content[at:])) for at in inside]
        outside += [f"(?!(?<={before}){after})" for before, after in parts]
    return re.compile(f"(?:{rule.pattern})" + "".join(outside)) if outside else rule
