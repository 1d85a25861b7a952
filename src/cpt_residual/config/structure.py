"""Walking the schema along a location: which model or tagged union lies where."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel

Location = tuple[str | int, ...]


def location_of(raw: Sequence[str | int], root: object) -> Location:
    """Pydantic's location in a `root` without union tags and key marks: as the user writes it."""
    location: list[str | int] = []
    kind: object = root
    for part in raw:
        if part == "[key]" or str(part).startswith(("list[", "literal[")):  # a branch of a union
            continue
        if not tagged(kind):  # else `part` is the tag of a union, not a key
            location.append(part)
        kind = below(kind, part)
    return tuple(location)


def model_of(raw: Sequence[str | int], root: object) -> type[BaseModel] | None:
    """The model in which the last part of `raw`, pydantic's location, would be a field."""
    kind: object = root
    for part in raw[:-1]:
        kind = below(kind, part)
    return _as_model(kind)


def union_of(raw: Sequence[str | int], root: object) -> dict[str, type[BaseModel]]:
    """The models by tag of the union whose member `model_of` finds; empty if it is of none."""
    kind: object = root
    for part in raw[:-2]:
        kind = below(kind, part)
    return tagged(kind)


def below(kind: object, part: str | int) -> object:
    """The annotation of what lies under `part` in a value of type `kind`."""
    members = tagged(kind)
    if members:
        return members.get(str(part))
    model = _as_model(kind)
    if model is not None:
        field = model.model_fields.get(str(part))
        return None if field is None else field.annotation
    arguments = get_args(_bare(kind))
    return arguments[-1] if arguments else None


def tagged(kind: object) -> dict[str, type[BaseModel]]:
    """The models of a tagged union by their tag; empty if `kind` is no such union."""
    models = [model for model in map(_as_model, _members(_bare(kind))) if model is not None]
    return {str(get_args(model.model_fields["kind"].annotation)[0]): model for model in models}


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


def _as_model(kind: object) -> type[BaseModel] | None:
    bare = _bare(kind)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None
