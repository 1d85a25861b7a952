"""From a plain container to an `Experiment`: every problem at once, with path, value and cure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cpt_residual.config.schema import Experiment
from cpt_residual.errors import ConfigError, did_you_mean

__all__ = ["MISSING", "Location", "dotted", "invalid", "problems_of", "validate"]

MISSING = "???"
"""OmegaConf's mark of a value that has to be given."""

Location = tuple[str | int, ...]

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
}
_PATTERNS = {
    "revision": "must be a commit: 40 hexadecimal digits",
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
        remedy="Nothing was run. Mend these and try again.",
    )


def problems_of(
    container: Mapping[str, object],
) -> tuple[Experiment | None, list[tuple[Location, str]]]:
    """The experiment, or every place where `container` departs from the schema and how."""
    try:
        return Experiment.model_validate(_without_missing(container), strict=True), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, [
        (_location(detail["loc"]), _text(cast("Mapping[str, Any]", detail))) for detail in details
    ]


def dotted(location: Location) -> str:
    """`("packs", "cpt", "sources", 0)` as `packs.cpt.sources[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top level)"


def _without_missing(value: object) -> object:
    """Leave out what is marked `???`, so that it is reported as missing and not as a wrong type."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return {key: _without_missing(item) for key, item in items if item != MISSING}
    if isinstance(value, list):
        return [_without_missing(item) for item in cast("list[object]", value) if item != MISSING]
    return value


# --- walking the schema along a location ---------------------------------------------------------
def _location(raw: Sequence[str | int]) -> Location:
    """Pydantic's location without union tags and key marks: the path as the user writes it."""
    location: list[str | int] = []
    kind: object = Experiment
    for part in raw:
        if part == "[key]":
            continue
        if not _tagged(kind):  # else `part` is the tag of a union, not a key
            location.append(part)
        kind = _below(kind, part)
    return tuple(location)


def _model_of(raw: Sequence[str | int]) -> type[BaseModel] | None:
    """The model in which the last part of `raw` would be a field."""
    kind: object = Experiment
    for part in raw[:-1]:
        kind = _below(kind, part)
    return _as_model(kind)


def _below(kind: object, part: str | int) -> object:
    """The annotation of what lies under `part` in a value of type `kind`."""
    tagged = _tagged(kind)
    if tagged:
        return tagged.get(str(part))
    model = _as_model(kind)
    if model is not None:
        field = model.model_fields.get(str(part))
        return None if field is None else field.annotation
    arguments = get_args(_bare(kind))
    return arguments[-1] if arguments else None


def _bare(kind: object) -> object:
    """`kind` without `Annotated` and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = _members(kind)
    return _bare(members[0]) if len(members) == 1 else kind


def _members(kind: object) -> list[object]:
    """What a union is made of, None left out; empty if `kind` is no union."""
    if get_origin(kind) not in (Union, UnionType):
        return []
    return [member for member in get_args(kind) if member is not NoneType]


def _tagged(kind: object) -> dict[str, type[BaseModel]]:
    """The models of a tagged union by their tag; empty if `kind` is no such union."""
    models = [model for model in map(_as_model, _members(_bare(kind))) if model is not None]
    return {str(get_args(model.model_fields["kind"].annotation)[0]): model for model in models}


def _as_model(kind: object) -> type[BaseModel] | None:
    bare = _bare(kind)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


# --- wording -------------------------------------------------------------------------------------
def _text(detail: Mapping[str, Any]) -> str:
    """`value: what is wrong.` of one pydantic error."""
    kind: str = detail["type"]
    if kind == "missing":
        return _OWN_WORDS[kind]
    worded = _WORDED.get(kind)
    reason = worded(detail) if worded else _OWN_WORDS.get(kind) or _reworded(detail["msg"])
    return f"{_shown(detail['input'])}: {reason}"


def _unknown_key(detail: Mapping[str, Any]) -> str:
    model = _model_of(detail["loc"])
    known = model.model_fields if model else ()
    return f"unknown key.{did_you_mean(str(detail['loc'][-1]), known)}"


def _unknown_kind(detail: Mapping[str, Any]) -> str:
    known = str(detail["ctx"]["expected_tags"]).replace("'", "").split(", ")
    tag = str(detail["ctx"]["tag"])
    return f"kind {tag!r} is unknown.{did_you_mean(tag, known)}"


def _without_kind(detail: Mapping[str, Any]) -> str:
    kind: object = Experiment
    for part in detail["loc"]:
        kind = _below(kind, part)
    return f"kind is required, no default (one of {', '.join(_tagged(kind))})"


def _not_a_choice(detail: Mapping[str, Any]) -> str:
    expected = str(detail["ctx"]["expected"])
    names = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]
    hint = did_you_mean(str(detail["input"]), names)
    return f"must be {expected}" + (f".{hint}" if "Did you mean" in hint else "")


def _bad_pattern(detail: Mapping[str, Any]) -> str:
    return _PATTERNS.get(str(detail["loc"][-1]), _PATTERNS[""])


_WORDED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "extra_forbidden": _unknown_key,
    "union_tag_invalid": _unknown_kind,
    "union_tag_not_found": _without_kind,
    "literal_error": _not_a_choice,
    "string_pattern_mismatch": _bad_pattern,
}


def _reworded(message: str) -> str:
    return message.replace("Input should be a valid", "must be a valid").replace(
        "Input should be", "must be"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
