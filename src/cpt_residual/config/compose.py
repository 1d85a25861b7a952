"""Compose `conf/` and overrides into one `Experiment`.

Hydra's defaults lists say which plain YAML files are merged, then pydantic validates all of it at
once. Hydra's own check of keys is not used on purpose: it would stop at the first unknown key and
refuse fields that the YAML leaves at the schema's default.
Importing this module is cheap; hydra is imported when something is composed (about 0.2 s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cpt_residual.config.checks import check
from cpt_residual.config.folders import Folders
from cpt_residual.config.layers import Composition, compose_layers
from cpt_residual.config.overrides import Setting, read_settings
from cpt_residual.config.schema import Experiment
from cpt_residual.config.validate import Location, dotted, invalid, problems_of, shown
from cpt_residual.errors import did_you_mean

DEFAULT_EXPERIMENT = "tiny"
"""What is composed when no experiment is named."""


@dataclass(frozen=True)
class Composed:
    """An experiment. `own_files`: the user's files that were read instead of packaged ones of the
    same name."""

    experiment: Experiment
    own_files: tuple[Path, ...]

    def notes(self) -> list[str]:
        """What a reader of the plan has to know about where its values come from."""
        return [f"{path} is read, not the packaged file of this name" for path in self.own_files]


def compose(overrides: Sequence[str], *, config_dir: Path | None = None) -> Experiment:
    """The validated experiment that `overrides` (Hydra's syntax) describe.

    `config_dir` holds the user's own groups, e.g. `config_dir/experiment/mine.yaml`, which come
    before the packaged ones. Raises `ConfigError` with all problems of one kind; about 0.4 s.
    """
    return compose_with_files(overrides, config_dir=config_dir).experiment


def compose_with_files(overrides: Sequence[str], *, config_dir: Path | None = None) -> Composed:
    """As `compose`, and which packaged files were replaced by the user's."""
    folders = Folders.of(config_dir)
    settings = read_settings(overrides, folders)
    if not any(setting.key == "experiment" for setting in settings):
        settings = [*read_settings([f"+experiment={DEFAULT_EXPERIMENT}"], folders), *settings]
    composition = compose_layers(settings, folders)
    experiment, problems = problems_of(composition.container)
    if experiment is None:
        raise invalid(_Explained(composition, settings, folders).lines(problems))
    check(experiment)
    paths = [layer.path for layer in composition.layers if layer.path is not None]
    return Composed(experiment, tuple(path for path in paths if folders.replaces_packaged(path)))


def experiment_names(config_dir: Path | None = None) -> list[str]:
    """Every name that `+experiment=` accepts."""
    return Folders.of(config_dir).options("experiment")


# --- wording -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Explained:
    """The problems of one composition in the words of those who wrote its files and overrides."""

    composition: Composition
    settings: Sequence[Setting]
    folders: Folders

    def lines(self, problems: Sequence[tuple[Location, str]]) -> list[str]:
        """One line per problem, but one line per override whose path names an entry that is not
        there (`models.bsae.source=x`) instead of the lines about all the fields it would lack."""
        unknown: dict[Location, str] = {}
        for setting in self.settings:
            found = self._unknown_name(setting) if setting.plain else None
            if found is not None:
                unknown[found[0]] = found[1]
        lines = [f"{dotted(place)}: {text}" for place, text in unknown.items()]
        return lines + [
            f"{dotted(place)}: {self._named(place, text)}{self._where(place)}"
            for place, text in problems
            if not any(place[: len(prefix)] == prefix for prefix in unknown)
        ]

    def _where(self, place: Location) -> str:
        """The user's file that gives the value; nothing for overrides and packaged files."""
        layer = self.composition.origin(place)
        if layer is None or layer.path is None or self.folders.is_packaged(layer.path):
            return ""
        level = ""
        if layer.package and place == (layer.package, layer.package):
            level = f"; what it holds goes below {layer.package} anyway: leave this level out"
        return f" (in {layer.path}{level})"

    def _named(self, place: Location, text: str) -> str:
        """`text`, or for an unknown key at the top level the nearest of all keys and groups."""
        name = str(place[0]) if len(place) == 1 else ""
        container = self.composition.container
        if name not in container or name in Experiment.model_fields:
            return text
        groups = set(self.folders.groups()) - set(Experiment.model_fields)
        hint = did_you_mean(name, {*Experiment.model_fields, *groups})
        for group in groups:
            if name == group or hint == f" Did you mean '{group}'?":
                ask = "It is a group." if name == group else f"Did you mean the group '{group}'?"
                options = ", ".join(self.folders.options(group))
                hint = f" {ask} Choose from it: {group}=NAME ({options})."
        return f"{shown(container[name])}: unknown key.{hint}"

    def _unknown_name(self, setting: Setting) -> tuple[Location, str] | None:
        """Where an override leaves an existing group of named entries, e.g. of `models`."""
        path = setting.key.split(".")
        if len(path) < 2 or path[0] not in _NAMED:
            return None
        entries = self._entries(path[0])
        if not entries or path[1] in entries:
            return None
        place = (path[0], path[1])
        dotted_names = [name for name in entries if setting.key.startswith(f"{path[0]}.{name}.")]
        if dotted_names:
            name = max(dotted_names, key=len)
            rest = setting.key.removeprefix(f"{path[0]}.{name}.")
            value = f"{{{rest.replace('.', ':{')}:...{'}' * (rest.count('.') + 1)}"
            return place, (
                f"the name {name!r} has a dot, and dots part keys: write "
                f"'{path[0]}={{{name}:{value}}}'"
            )
        return place, f"no such entry.{did_you_mean(path[1], entries)}"

    def _entries(self, name: str) -> set[str]:
        """The entries of `name` by files and by overrides with a plus."""
        added = [each.key.split(".") for each in self.settings if not each.plain]
        names = {path[1] for path in added if path[0] == name and len(path) > 1}
        for layer in self.composition.layers:
            content = layer.content.get(name) if layer.path is not None else None
            if isinstance(content, Mapping):
                names |= {str(key) for key in cast("Mapping[object, object]", content)}
        for setting in self.settings:
            if setting.key == name and isinstance(setting.value, dict):
                names |= {str(key) for key in cast("dict[object, object]", setting.value)}
        return names


_NAMED = tuple(
    name
    for name, field in Experiment.model_fields.items()
    if str(field.annotation).startswith("dict")
)
