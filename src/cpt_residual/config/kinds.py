"""When a later file or override changes the `kind` of an entry, the former kind's own keys go.

Composition merges mappings key by key, so `new_domain: {kind: local, files: [...]}` over a part of
the world would keep `part`, which a local corpus does not have. What is dropped was given before
`kind` was changed and belongs to another kind only; a key given together with the new kind, or
after it, is never dropped: it is the user's, and an error when it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from cpt_residual.config.schema import Experiment
from cpt_residual.config.structure import below, tagged

_Place = tuple[str, ...]
Layers = Callable[[], Sequence[Mapping[str, object]]]
"""What was merged, in order: one mapping per file, then one of all overrides."""


def without_former_kinds(container: dict[str, object], layers: Layers) -> dict[str, object]:
    """`container` without what entries keep of a kind they no longer are; changed in place.

    `layers` is only asked when an entry has keys that belong to another kind.
    """
    foreign = list(_foreign(container, Experiment, ()))
    merged = layers() if foreign else ()
    for place, keys in foreign:
        entry = cast("dict[str, object]", _at(container, place))
        for key in keys & _outlived(place, merged):
            del entry[key]
    return container


def _foreign(value: object, kind: object, place: _Place) -> Iterator[tuple[_Place, set[str]]]:
    """(place, keys) of every entry with keys that only another kind of its union has."""
    if not isinstance(value, Mapping):
        return
    entry = cast("Mapping[str, object]", value)
    members = tagged(kind)
    if members:
        kind = members.get(str(entry.get("kind")))
        if kind is None:
            return
        others = {name for member in members.values() for name in member.model_fields}
        keys = set(entry) & (others - set(members[str(entry["kind"])].model_fields))
        if keys:
            yield place, keys
    for key, item in entry.items():
        yield from _foreign(item, below(kind, key), (*place, key))


def _outlived(place: _Place, layers: Sequence[Mapping[str, object]]) -> set[str]:
    """Keys of the entry at `place` that were given only before its kind was last changed."""
    kind: object = None
    former: set[str] = set()
    present: set[str] = set()
    for layer in layers:
        entry = _at(layer, place)
        if not isinstance(entry, Mapping):
            continue
        given = cast("Mapping[str, object]", entry)
        if "kind" in given and given["kind"] != kind:
            if kind is not None:
                former, present = former | present, set()
            kind = given["kind"]
        present |= set(given)
        former -= set(given)
    return former


def _at(value: object, place: _Place) -> object:
    for part in place:
        value = (
            cast("Mapping[str, object]", value).get(part) if isinstance(value, Mapping) else None
        )
    return value
