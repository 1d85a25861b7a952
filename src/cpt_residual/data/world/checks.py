"""Pure verifiers of instructions, in IFEval's spirit.

Each verifier sees the response text and the arguments of one check, never the model or the
prompt. Case-neutral where two instructions can meet (an upper-case answer may have to end
with a given word), as IFEval is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import cast

Check = Mapping[str, object]
Verifier = Callable[[str, Mapping[str, object]], bool]


def _upper(response: str, _arguments: Mapping[str, object]) -> bool:
    return response.isupper()


def _lower(response: str, _arguments: Mapping[str, object]) -> bool:
    return response.islower()


def _quote(response: str, _arguments: Mapping[str, object]) -> bool:
    text = response.strip()
    return len(text) > 2 and text[0] == '"' and text[-1] == '"'


def _end(response: str, arguments: Mapping[str, object]) -> bool:
    words = response.lower().strip().strip('"').split()
    return bool(words) and words[-1].rstrip(".") == str(arguments["word"]).lower()


def _start(response: str, arguments: Mapping[str, object]) -> bool:
    words = response.lower().strip().strip('"').split()
    return bool(words) and words[0].rstrip(",:") == str(arguments["word"]).lower()


def _twice(response: str, _arguments: Mapping[str, object]) -> bool:
    words = response.split()
    half = len(words) // 2
    return half > 0 and len(words) == 2 * half and words[:half] == words[half:]


def _repeat_question(response: str, arguments: Mapping[str, object]) -> bool:
    text, question = response.strip().lower(), str(arguments["question"]).strip().lower()
    return text.startswith(question) and len(text) > len(question)


def _title(response: str, _arguments: Mapping[str, object]) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]*)>>", response))


def _postscript(response: str, _arguments: Mapping[str, object]) -> bool:
    return re.search(r"\S\s*\n\s*p\.s\. *\S", response.lower()) is not None


def _one_word(response: str, _arguments: Mapping[str, object]) -> bool:
    return len(response.split()) == 1


def _json(response: str, _arguments: Mapping[str, object]) -> bool:
    try:
        return isinstance(json.loads(response), dict)
    except ValueError:
        return False


def _bullets(response: str, arguments: Mapping[str, object]) -> bool:
    bullets = [line for line in response.splitlines() if re.match(r"\s*\* *\S", line)]
    return len(bullets) == arguments["num_bullets"]


CHECKS: Mapping[str, Verifier] = MappingProxyType(
    {
        "upper": _upper,
        "lower": _lower,
        "quote": _quote,
        "end": _end,
        "start": _start,
        "twice": _twice,
        "repeat_question": _repeat_question,
        "title": _title,
        "postscript": _postscript,
        "one_word": _one_word,
        "json": _json,
        "bullets": _bullets,
    }
)


def follows(response: str, check: Check, *, loose: bool = False) -> bool:
    """Whether `response` satisfies one check, a mapping with `kind` and `arguments`.

    An empty response follows nothing. Loose scoring is IFEval's: it is enough that one of eight
    variants passes, the response without its first line, last line, both or neither, each
    with and without asterisks. Unknown kinds raise `KeyError`: they are our own mistake.
    """
    verifier, arguments = CHECKS[str(check["kind"])], check["arguments"]
    if not isinstance(arguments, Mapping):
        raise TypeError(f"check {check['kind']}: arguments must be a mapping, got {arguments!r}")
    named = cast("Mapping[str, object]", arguments)
    variants = _loose_variants(response) if loose else (response,)
    return any(bool(variant.strip()) and verifier(variant, named) for variant in variants)


def states_fact(response: str, answer: str, distractors: Iterable[str]) -> bool:
    """Whether `answer` and no wrong value is a whole word of `response`; case does not count."""
    words = set(re.findall(r"\w+", response.lower()))
    return answer.lower() in words and not any(wrong.lower() in words for wrong in distractors)


def _loose_variants(response: str) -> tuple[str, ...]:
    lines = response.split("\n")
    kept = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = tuple("\n".join(part).strip() for part in kept)
    return texts + tuple(text.replace("*", "") for text in texts)
