"""A name that is not in the schema is an error that names its path, wherever it stands."""

from __future__ import annotations

import string
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.compose import compose
from cpt_residual.config.validate import validate
from cpt_residual.errors import ConfigError

names = st.text(string.ascii_lowercase + "_", min_size=3, max_size=12).map(lambda name: f"x{name}x")
Path = tuple[str | int, ...]


@cache
def tiny() -> dict[str, Any]:
    return compose([]).model_dump()


@cache
def places() -> list[Path]:
    """Paths of all mappings with fixed keys: models of the schema, not dicts of named entries."""
    found: list[Path] = []

    def walk(value: object, path: Path) -> None:
        if isinstance(value, dict):
            named = (len(path) == 1 and path[0] in NAMED) or path[-1:] in OPEN
            if not named:
                found.append(path)
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, (*path, index))

    walk(tiny(), ())
    return found


NAMED = (
    *("corpora", "packs", "recipes", "models", "residuals", "suites"),
    *("variants", "contrasts"),
)
OPEN = (("threads_for",), ("scales",))
"""Last parts of the paths of mappings whose keys are free."""


def at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def shown(path: Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@given(st.data(), names)
def test_an_unknown_key_is_named_with_its_path(data: st.DataObject, name: str) -> None:
    path = data.draw(st.sampled_from(places()))
    container = deepcopy(tiny())
    at(container, path)[name] = 1
    with pytest.raises(ConfigError) as caught:
        validate(container)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{shown((*path, name))}: 1: unknown key.")


@given(st.data())
def test_a_missing_or_unset_key_is_named_with_its_path(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places()))
    container = deepcopy(tiny())
    target = at(container, path)
    key = data.draw(st.sampled_from(sorted(target)))
    marked = data.draw(st.booleans())
    if marked:
        target[key] = "???"
    else:
        del target[key]
    try:
        validate(container)
    except ConfigError as error:
        tags = key == "kind" and path[0] != "variants"  # there it is a field like any other
        place = shown(path) if tags else shown((*path, key))
        (problem,) = error.problems
        assert problem.startswith(f"{place}: ")
        assert "required, no default" in problem
    else:
        assert not marked


@given(st.lists(names, min_size=2, max_size=5, unique=True))
def test_all_unknown_keys_are_said_at_once(found: list[str]) -> None:
    container = deepcopy(tiny())
    container["recipes"]["cpt"].update(dict.fromkeys(found, 0))
    with pytest.raises(ConfigError) as caught:
        validate(container)
    assert len(caught.value.problems) == len(found)


@given(st.data())
def test_nothing_is_cast(data: st.DataObject) -> None:
    """A number given as text is an error, also where it could be read as one."""
    path = data.draw(st.sampled_from(places()))
    container = deepcopy(tiny())
    target = at(container, path)
    numbers = [k for k, v in target.items() if isinstance(v, (int, float))]
    if not numbers:
        return
    key = data.draw(st.sampled_from(sorted(numbers)))
    target[key] = str(target[key])
    with pytest.raises(ConfigError) as caught:
        validate(container)
    assert caught.value.problems[0].startswith(f"{shown((*path, key))}: ")
