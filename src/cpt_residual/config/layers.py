"""What a configuration is composed of: every file and then the overrides, in the order of merging.

Hydra reads the defaults lists; the merging is a few lines of OmegaConf here, so that each value is
known with the file it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cpt_residual.config.folders import Folders
from cpt_residual.config.overrides import Setting
from cpt_residual.config.schema import Experiment
from cpt_residual.config.structure import Location
from cpt_residual.config.validate import MISSING, dotted, invalid, marked
from cpt_residual.config.yaml_files import PACKAGE_LINE, ConfigFile, read_file
from cpt_residual.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.default_element import ResultDefault
    from omegaconf import DictConfig

_GROUP_REMEDY = "A group is chosen with group=name, a value set with path.to.key=value."


@dataclass(frozen=True)
class Layer:
    """The values of one file below the keys where they go, or of all overrides (`path` None)."""

    path: Path | None
    package: str
    content: Mapping[str, object]


@dataclass(frozen=True)
class Composition:
    """What was merged, and the result: resolved, plain, `???` kept."""

    layers: tuple[Layer, ...]
    container: dict[str, object]

    def origin(self, place: Location) -> Layer | None:
        """The last layer that gives a value at `place`, or at the nearest place above."""
        for layer in reversed(self.layers):
            if _gives(layer.content, place):
                return layer
        return None


def compose_layers(settings: Sequence[Setting], folders: Folders) -> Composition:
    """Raises ConfigError when files cannot be read or do not fit together."""
    files: dict[Path, ConfigFile] = {}

    def read(path: Path) -> ConfigFile:
        if path not in files:
            files[path] = read_file(path, trusted=folders.is_packaged(path))
        return files[path]

    layers = [_layer(each, folders, read) for each in _defaults(settings, folders, read)]
    merged = _merged(layers)
    for setting in settings:
        if not setting.is_choice:
            with _refusing(f"{setting.text} cannot be {'removed' if setting.is_delete else 'set'}"):
                _apply(merged, setting)
    layers.append(Layer(None, "", _written(settings)))
    return Composition(tuple(layers), _resolved(merged, layers))


# --- files ---------------------------------------------------------------------------------------
def _defaults(
    settings: Sequence[Setting], folders: Folders, read: Callable[[Path], ConfigFile]
) -> list[ResultDefault]:
    """The files that are merged, in order, as Hydra's defaults lists say."""
    from hydra.errors import HydraException, MissingConfigException

    from cpt_residual.config.hydra_source import cycle_in, defaults_of

    choices = [setting.text for setting in settings if setting.is_choice]
    with _refusing("cannot compose the configuration"):
        try:
            found = defaults_of(choices, folders, read)
        except MissingConfigException as error:
            raise _unknown_option(str(error.missing_cfg_file or ""), folders) from None
        except HydraException as error:
            skeleton = folders.file("config")
            reasons = _reasons(error)
            if skeleton is not None and folders.replaces_packaged(skeleton):
                reasons.append(f"{skeleton} is read, not the packaged file of this name")
            raise ConfigError(
                "cannot compose the configuration", problems=reasons, remedy=_GROUP_REMEDY
            ) from None
        except RecursionError as error:
            raise _endless(cycle_in(error), folders) from None
        except AssertionError:  # Hydra's answer to a list that it does not expect
            reason = "a defaults list cannot be read"
            raise ConfigError("cannot compose the configuration", problems=[reason]) from None
    return [each for each in found if each.config_path is not None]


def _endless(trail: Sequence[str], folders: Folders) -> ConfigError:
    """The error for files that include each other."""
    path = folders.file(trail[-1]) if trail else None
    if path is None:
        return ConfigError("the defaults lists of the configuration files never end")
    return ConfigError(
        f"{path}: its defaults list includes the file itself",
        problems=[" -> ".join(trail)],
        remedy="Nothing was run. "
        + (
            "To build on the packaged file, give yours another name."
            if folders.replaces_packaged(path)
            else "Take one of them out of its list."
        ),
    )


def _layer(default: ResultDefault, folders: Folders, read: Callable[[Path], ConfigFile]) -> Layer:
    path = folders.file(str(default.config_path))
    assert path is not None  # Hydra has found it through the same folders
    file = read(path)
    package = default.package or ""
    _check_package(file, package)
    content: Mapping[str, object] = file.content
    for part in reversed(package.split(".") if package and content else []):
        content = {part: content}
    return Layer(path, package, content)


def _check_package(file: ConfigFile, package: str) -> None:
    """Raise ConfigError for keys that end where nothing is read."""
    top = package.split(".", maxsplit=1)[0]
    if not file.content or top in ("", *Experiment.model_fields):
        return
    what = (
        f"its first line has to be `{PACKAGE_LINE}`"
        if file.package is None
        else f"`# @package {file.package}` is no part of an experiment"
    )
    raise ConfigError(
        f"{file.path}: {what}",
        problems=[f"as it is, its keys ({_some(file.content)}) go below `{package}`, unread"],
        remedy=f"Nothing was run. Let the file begin with the line\n{PACKAGE_LINE}",
    )


def _some(content: Mapping[str, object]) -> str:
    keys = [str(key) for key in content]
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")


def _unknown_option(missing: str, folders: Folders) -> ConfigError:
    """An option (or an experiment) that is in no folder: the nearest name and all names."""
    group, name = _split(missing, folders)
    known = folders.options(group)
    if not known:
        return ConfigError(
            f"no configuration group {group or missing!r}."
            f"{did_you_mean(group or missing, folders.groups())}",
            problems=[f"{each}: {', '.join(folders.options(each))}" for each in folders.groups()],
        )
    nearest = did_you_mean(name.removesuffix(".yaml").removesuffix(".yml"), known)
    remedy = (
        f"Choose one of these, or add {group}/NAME.yaml to a folder of your own and name it with "
        "--config-dir."
    )
    return ConfigError(
        f"{group}={name}: no such {'experiment' if group == 'experiment' else 'option'}."
        + (nearest if "Did you" in nearest else ""),
        problems=[*_nearly(group, name, folders), f"{group}: {', '.join(known)}"],
        remedy=remedy,
    )


def _split(missing: str, folders: Folders) -> tuple[str, str]:
    """Group and name of `missing`, where the group is the longest that there is."""
    parts = missing.split("/")
    for end in range(len(parts) - 1, 0, -1):
        if folders.is_group("/".join(parts[:end])):
            return "/".join(parts[:end]), "/".join(parts[end:])
    return "/".join(parts[:-1]), parts[-1]


def _nearly(group: str, name: str, folders: Folders) -> Iterator[str]:
    """What is there under nearly this name and cannot be it."""
    if name.endswith((".yaml", ".yml")) and "/" in name:
        yield f"{name} looks like a path: give its folder with --config-dir, and its bare name"
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    for folder in folders.in_order():
        if not folders.is_group(group):
            continue
        other = folder / group / f"{stem}.yml"
        if stem in {path.stem for path in (folder / group).glob("*.yml")}:
            yield f"{other} is not read: rename it to {stem}.yaml"
        if stem in {path.stem for path in (folder / group).glob("*.yaml") if path.is_dir()}:
            yield f"{folder / group / stem}.yaml is a folder"


# --- merging -------------------------------------------------------------------------------------
def _merged(layers: Sequence[Layer]) -> DictConfig:
    from omegaconf import OmegaConf

    merged = OmegaConf.create()
    for layer in layers:
        with _refusing(f"{layer.path} does not fit what it is merged with"):
            try:
                merged.merge_with(OmegaConf.create(dict(layer.content)))
            except TypeError:  # it names neither key nor values
                raise ValueError(_clash(OmegaConf.to_container(merged), layer.content)) from None
    return merged


def _clash(before: object, after: object, place: Location = ()) -> str:
    """Where a list stands for a mapping, or a mapping for a list; empty if nowhere."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = cast("Mapping[str, object]", before), cast("Mapping[str, object]", after)
        found = (_clash(old[key], new[key], (*place, key)) for key in new if key in old)
        return next(filter(None, found), "")
    if isinstance(before, Mapping) and isinstance(after, list):
        return f"{dotted(place)} is a list, but was a mapping"
    if isinstance(before, list) and isinstance(after, Mapping):
        return f"{dotted(place)} is a mapping, but was a list"
    return ""


@contextmanager
def _refusing(what: str) -> Generator[None]:
    """Turn what OmegaConf says of values that do not fit into a ConfigError."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(what, problems=_reasons(error), remedy=_GROUP_REMEDY) from None
    except RecursionError:
        reason = "its values are nested too deeply"
        raise ConfigError(what, problems=[reason], remedy=_GROUP_REMEDY) from None


def _apply(merged: DictConfig, setting: Setting) -> None:
    from omegaconf import OmegaConf

    if not setting.is_delete:
        OmegaConf.update(merged, setting.key, setting.value, merge=True, force_add=True)
        return
    parent, _, last = setting.key.rpartition(".")
    holder = OmegaConf.select(merged, parent) if parent else merged
    key = int(last) if OmegaConf.is_list(holder) and last.isdecimal() else last
    there = OmegaConf.select(merged, setting.key) if OmegaConf.is_config(holder) else None
    if there is None:
        raise ValueError(f"{setting.key} is not there")
    if setting.value not in (None, "", there):
        raise ValueError(f"{setting.key} is {there!r}")
    del holder[key]


def _resolved(merged: DictConfig, layers: Sequence[Layer]) -> dict[str, object]:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError

    with _refusing("cannot compose the configuration"):
        try:
            resolved = OmegaConf.to_container(merged, resolve=True)
        except InterpolationToMissingValueError:
            unresolved = cast("dict[str, object]", OmegaConf.to_container(merged))
            raise invalid(
                [f"{dotted(place)}: required, no default" for place in marked(unresolved)]
            ) from None
    container = cast("dict[str, object]", resolved)
    for place in _demanded(layers):
        _mark(container, place)
    return container


def _demanded(layers: Sequence[Layer]) -> list[Location]:
    """Where a layer has `???` and none after it a value: merging keeps an earlier value there."""
    demanded: list[Location] = []
    for layer in layers:
        demanded = [place for place in demanded if not _gives(layer.content, place)]
        places = list(marked(layer.content))
        demanded += [each for each in places if all(isinstance(part, str) for part in each)]
    return demanded


def _mark(container: MutableMapping[str, object], place: Location) -> None:
    value: object = container
    for part in place[:-1]:
        value = cast("Mapping[object, object]", value).get(part) if _is_mapping(value) else None
    if _is_mapping(value) and place[-1] in cast("MutableMapping[object, object]", value):
        cast("MutableMapping[object, object]", value)[place[-1]] = MISSING


def _gives(content: object, place: Location) -> bool:
    """Whether `content` says what is at `place`: a value there, or no mapping on the way."""
    for part in place:
        if not _is_mapping(content):
            return True
        mapping = cast("Mapping[object, object]", content)
        if part not in mapping:
            return False
        content = mapping[part]
    return content != MISSING


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _written(settings: Sequence[Setting]) -> dict[str, object]:
    """The values of the overrides as one mapping."""
    written: dict[str, object] = {}
    for setting in settings:
        if setting.is_choice or setting.is_delete:
            continue
        target = written
        *parents, last = setting.key.split(".")
        for part in parents:
            below = target.get(part)
            target[part] = below if isinstance(below, dict) else {}
            target = cast("dict[str, object]", target[part])
        target[last] = deepcopy(setting.value)
    return written


def _reasons(error: BaseException) -> list[str]:
    """The lines of a library's message and of what caused it, without its traceback."""
    lines: list[str] = []
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:  # OmegaConf can make an error its own cause
        chain.append(cause)
        lines += [line.strip().replace("++", "") for line in str(cause).splitlines()]
        cause = cause.__cause__
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    return kept or [type(error).__name__]
