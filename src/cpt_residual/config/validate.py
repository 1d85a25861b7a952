"""Validate a composed container as an `Experiment`; all problems in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from cpt_residual.base_model import PRINTABLE, PRINTABLE_LINE
from cpt_residual.config.renamed import renamed
from cpt_residual.config.schema import Experiment
from cpt_residual.config.structure import (
    Location,
    below,
    location_of,
    model_of,
    tagged,
    union_of,
)
from cpt_residual.errors import ConfigError, did_you_mean

MISSING = "???"
"""OmegaConf's mark of a value that has to be given."""

_Detail = Mapping[str, Any]
"""One finding of pydantic."""

_OWN_WORDS = {
    "missing": "required, no default",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "too_short": "must not be empty",
    "string_unicode": "must be text in UTF-8",
    "int_parsing_size": "must be a whole number of fewer digits",
}
_PATTERNS = {
    "revision": "must be a commit: 40 hexadecimal digits",
    "content_sha256": "must be a sha256: 64 hexadecimal digits",
    "": "is not a valid name (letters, digits, '_', '.' and '-', first a letter or digit)",
}


def validate(container: Mapping[str, object]) -> Experiment:
    """The experiment that `container` describes; nothing is cast (strict).

    Raises `ConfigError` with one line per problem: `path: value: what is wrong`.
    """
    experiment, problems = problems_of(container)
    if experiment is None:
        raise invalid([f"{dotted(location)}: {text}" for location, text in problems])
    return experiment


def invalid(
    problems: Sequence[str], *, what: str = "the configuration is not valid"
) -> ConfigError:
    """The error that lists `problems`, one line each, under `what`."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(
        f"{what} ({count})",
        problems=problems,
        remedy="Nothing was run. Fix these and try again.",
    )


def problems_of(
    container: Mapping[str, object],
) -> tuple[Experiment | None, list[tuple[Location, str]]]:
    """The experiment, or every place where `container` departs from the schema and how."""
    missing = set(marked(container))
    experiment, details = _validated(container)
    dropped = [each for each in details if each["input"] is None and _other_kinds(each, Experiment)]
    if dropped:
        places = [location_of(each["loc"], Experiment) for each in dropped]
        experiment, details = _validated(_without(container, places))
    if experiment is not None and not missing:
        return experiment, []
    problems: list[tuple[Location, str]] = []
    for detail in details:
        place = location_of(detail["loc"], Experiment)
        if detail["type"] == "extra_forbidden":
            missing = {each for each in missing if each[: len(place)] != place}
        elif any(_overlap(each, place) for each in missing) and not _without_tag(detail):
            continue  # whatever else is wrong there, a value is missing
        elif _without_tag(detail):
            missing.discard((*place, "kind"))
        problems.append((place, _text(detail, Experiment)))
    return None, problems + [(place, _OWN_WORDS["missing"]) for place in sorted(missing, key=str)]


def _is_word_branch(detail: _Detail) -> bool:
    """Of a field that is a list or one word: what is said of the list says it for both."""
    return any(str(part).startswith("literal[") for part in detail["loc"])


def _overlap(one: Location, other: Location) -> bool:
    """Whether one place is the other or lies below it."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _validated(
    container: Mapping[str, object],
) -> tuple[Experiment | None, Sequence[_Detail]]:
    try:
        return Experiment.model_validate(container, strict=True), ()
    except ValidationError as error:
        details = cast("list[_Detail]", error.errors(include_url=False))
        return None, [each for each in details if not _is_word_branch(each)]


def _without(container: Mapping[str, object], places: Sequence[Location]) -> dict[str, object]:
    """A copy without the keys at `places`: `key: null` drops a key of an entry's former kind."""
    copy = cast("dict[str, object]", deepcopy(container))
    for *parents, last in places:
        holder: Any = copy
        for part in parents:
            holder = holder[part]
        del holder[last]
    return copy


def marked(value: object, place: Location = ()) -> Iterator[Location]:
    """Where `value` has `???`, however deep."""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from marked(item, (*place, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            yield from marked(item, (*place, index))
    elif isinstance(value, str) and value == MISSING:
        yield place


def problems_in(error: ValidationError, root: type[BaseModel]) -> list[tuple[Location, str]]:
    """(place, `value: what is wrong`) of every finding of pydantic about a `root`, in our words."""
    details = cast("list[Mapping[str, Any]]", error.errors(include_url=False))
    return [(location_of(each["loc"], root), _text(each, root)) for each in details]


def dotted(location: Location) -> str:
    """`("packs", "cpt", "sources", 0)` as `packs.cpt.sources[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top level)"


# --- wording -------------------------------------------------------------------------------------
def _text(detail: _Detail, root: type[BaseModel]) -> str:
    """`value: what is wrong.` of one pydantic error about a `root`."""
    kind: str = detail["type"]
    if kind == "missing":
        return _OWN_WORDS[kind]
    if kind == "list_type" and str(detail["loc"][-1]).startswith("list["):
        return f"{shown(detail['input'])}: must be a list, or the one word that the field knows"
    worded = _WORDED.get(kind)
    reason = worded(detail, root) if worded else _OWN_WORDS.get(kind) or _reworded(detail["msg"])
    return f"{shown(detail['input'])}: {reason}"


def _unknown_key(detail: _Detail, root: type[BaseModel]) -> str:
    *_, tag, name = ("", *detail["loc"])
    place = dotted(location_of(detail["loc"], root))
    model = model_of(detail["loc"], root)
    known = model.model_fields if model else ()
    new = renamed(str(name), known)
    if new is not None:
        return f"this key was renamed to {new}."
    owners = _other_kinds(detail, root)
    if owners:  # a key of another kind: the kind is wrong, or the key
        return (
            f"kind {tag} has no such key, kind {' and '.join(owners)} has: give that kind too, or "
            f"drop the key with `{place}: null`. Known: {', '.join(known)}."
        )
    return f"unknown key.{did_you_mean(str(name), known)}"


def _other_kinds(detail: _Detail, root: type[BaseModel]) -> list[str]:
    """The other kinds of the entry that have the unknown key of `detail`."""
    if detail["type"] != "extra_forbidden":
        return []
    name, union = detail["loc"][-1], union_of(detail["loc"], root)
    return [kind for kind, member in union.items() if name in member.model_fields]


def _without_tag(detail: _Detail) -> bool:
    """Whether the kind of an entry is not given, or is `???`."""
    kind, tag = detail["type"], detail.get("ctx", {}).get("tag")
    return kind == "union_tag_not_found" or (kind == "union_tag_invalid" and tag == MISSING)


def _unknown_kind(detail: _Detail, root: type[BaseModel]) -> str:
    if _without_tag(detail):
        return _without_kind(detail, root)
    known = str(detail["ctx"]["expected_tags"]).replace("'", "").split(", ")
    tag = str(detail["ctx"]["tag"])
    return f"kind {tag!r} is unknown.{did_you_mean(tag, known)}"


def _without_kind(detail: _Detail, root: type[BaseModel]) -> str:
    kind: object = root
    for part in detail["loc"]:
        kind = below(kind, part)
    return f"kind is required, no default (one of {', '.join(tagged(kind))})"


def _not_a_choice(detail: _Detail, root: type[BaseModel]) -> str:  # noqa: ARG001
    expected, given = str(detail["ctx"]["expected"]), detail["input"]
    words = expected.replace(" or ", ", ").split(", ")
    names = [word.strip("'") for word in words]
    if given is False and "off" in names:
        return f'must be {expected}. YAML reads a bare off as false: write "off", in quotes.'
    if isinstance(given, str) and given in words:  # a number given as text
        return f"must be {expected}. Write {given} without quotes."
    hint = did_you_mean(str(given), names)
    return f"must be {expected}" + (f".{hint}" if "Did you mean" in hint else "")


def _bad_pattern(detail: _Detail, root: type[BaseModel]) -> str:  # noqa: ARG001
    name = str(detail["loc"][-1])
    if detail["ctx"]["pattern"] in (PRINTABLE, PRINTABLE_LINE):
        return "must be plain text, without control characters"
    return _PATTERNS.get(name, _PATTERNS[""])


def _too_short(detail: _Detail, root: type[BaseModel]) -> str:  # noqa: ARG001
    least = int(str(detail["ctx"]["min_length"]))
    return "must not be empty" if least == 1 else f"must have {least} characters or more"


_WORDED: Mapping[str, Callable[[_Detail, type[BaseModel]], str]] = {
    "extra_forbidden": _unknown_key,
    "union_tag_invalid": _unknown_kind,
    "union_tag_not_found": _without_kind,
    "literal_error": _not_a_choice,
    "string_pattern_mismatch": _bad_pattern,
    "string_too_short": _too_short,
}


def _reworded(message: str) -> str:
    message = message.removeprefix("Value error, ")  # of a check of our own
    return message.replace("Input should be a valid", "must be a valid").replace(
        "Input should be", "must be"
    )


def shown(value: object) -> str:
    """`value` in a message: 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
