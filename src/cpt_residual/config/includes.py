"""Detection of cycles in defaults lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from cpt_residual.config.folders import Folders
from cpt_residual.config.overrides import Setting
from cpt_residual.config.yaml_files import read_file
from cpt_residual.errors import ConfigError


def cycle_of(settings: Sequence[Setting], folders: Folders) -> ConfigError:
    """The error that names the files which include each other without an end."""
    starts = ["config"]
    for setting in settings:
        if setting.is_choice:
            starts += [f"{setting.key}/{name}" for name in _listed(setting.value)]
    for start in starts:
        trail = _trail(start, (), folders)
        if trail:
            break
    else:
        return ConfigError("the defaults lists of the configuration files never end")
    path = folders.file(trail[-1])
    hides = path is not None and folders.replaces_packaged(path)
    return ConfigError(
        f"{path}: its defaults list includes the file itself",
        problems=[" -> ".join(trail[trail.index(trail[-1]) :])],
        remedy="Nothing was run. "
        + (
            "To build on the packaged file, give yours another name."
            if hides
            else "Take one of them out of its list."
        ),
    )


def _trail(name: str, trail: tuple[str, ...], folders: Folders) -> tuple[str, ...]:
    """The names from the start to the first that comes again; empty if none does."""
    if name in trail:
        return (*trail, name)
    path = folders.file(name)
    if path is None:
        return ()
    for item in read_file(path, trusted=True).defaults:
        for included in _included(item, name.rpartition("/")[0]):
            found = _trail(included, (*trail, name), folders)
            if found:
                return found
    return ()


def _included(item: object, group: str) -> Iterator[str]:
    """The names that an item of the defaults list of a file in `group` stands for."""
    if isinstance(item, str):
        pairs: list[tuple[str, object]] = [("", item)]
    else:
        entries = cast("dict[str, object]", item)
        pairs = [(key.split()[-1].partition("@")[0], value) for key, value in entries.items()]
    for key, value in pairs:
        for name in _listed(value):
            path = "/".join(part for part in (key, name.partition("@")[0]) if part)
            absolute = path.startswith("/") or not group
            if name != "_self_":
                yield path.lstrip("/") if absolute else f"{group}/{path}"


def _listed(value: object) -> list[str]:
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str)]
