"""From `conf/` and overrides to one `Experiment`; the only importer of hydra.

Hydra composes plain YAML, then pydantic validates all of it at once. Hydra's own check of keys is
switched off on purpose (a plain `key=value` is handed over as `++key=value`): it would stop at
the first unknown key and refuse fields that the YAML leaves at the schema's default.
Importing this module is cheap; hydra is imported when something is composed (about 0.2 s).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cpt_residual.config.checks import check
from cpt_residual.config.kinds import without_former_kinds
from cpt_residual.config.schema import Experiment
from cpt_residual.config.validate import Location, dotted, invalid, problems_of, shown
from cpt_residual.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = ["DEFAULT_EXPERIMENT", "compose", "conf_dir", "expand_sweep", "experiment_names"]

DEFAULT_EXPERIMENT = "tiny"
"""What is composed when no experiment is named."""


def compose(overrides: Sequence[str], *, config_dir: Path | None = None) -> Experiment:
    """The validated experiment that `overrides` (Hydra's syntax) describe.

    `config_dir` holds the user's own groups, e.g. `config_dir/experiment/mine.yaml`, beside the
    packaged ones. Raises `ConfigError` with all problems of one kind; about 0.4 s.
    """
    sources = _Sources(conf_dir(), _checked(config_dir))
    parsed = _accepted(overrides, sources)
    if not any(override.key == "experiment" for override in parsed):
        parsed.insert(0, _Override(f"+experiment={DEFAULT_EXPERIMENT}", "experiment", plain=False))
    container = _container([override.text for override in parsed], sources)
    container = without_former_kinds(container, lambda: _layers(parsed, sources))
    experiment, problems = problems_of(container)
    if experiment is None:
        named = [(place, _named(place, text, container, sources)) for place, text in problems]
        raise invalid(_with_unknown_names(named, parsed, sources))
    check(experiment)
    return experiment


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides per run: the cartesian product of every `key=a,b` and `range(...)`.

    The last sweep varies fastest. Without a sweep, one list that equals `overrides`.
    """
    axes: list[list[str]] = []
    for override in _read(overrides):
        text = str(override.input_line)
        if not override.is_sweep_override():
            axes.append([text])
        elif override.is_discrete_sweep() and "glob(" not in text:
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(
                f"cannot sweep over {text!r}",
                remedy="A sweep lists its values: key=a,b or key=range(0,5).",
            )
    return [list(choice) for choice in product(*axes)]


def conf_dir() -> Path:
    """The folder of `config.yaml`: the copy inside the package (wheel), else the checkout's."""
    here = Path(__file__).resolve()
    candidates = [here.parents[1] / "conf", here.parents[3] / "conf"]
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        "the configuration files of cpt_residual are missing",
        problems=[f"no config.yaml in {candidate}" for candidate in candidates],
        remedy="Reinstall the package, or work in a full checkout.",
    )


def experiment_names(config_dir: Path | None = None) -> list[str]:
    """Every name that `+experiment=` accepts."""
    return _Sources(conf_dir(), _checked(config_dir)).options("experiment")


# --- where configuration comes from --------------------------------------------------------------
@dataclass(frozen=True)
class _Sources:
    """The packaged folder and, if any, the user's."""

    packaged: Path
    own: Path | None

    def folders(self) -> list[Path]:
        return [self.packaged] if self.own is None else [self.packaged, self.own]

    def is_group(self, name: str) -> bool:
        return any((folder / name).is_dir() for folder in self.folders())

    def groups(self) -> list[str]:
        return sorted({p.name for folder in self.folders() for p in folder.iterdir() if p.is_dir()})

    def file(self, name: str) -> Path | None:
        """The file that `name`, e.g. `corpus/world`, is read from; None if no folder has it."""
        paths = [folder / f"{name}.yaml" for folder in self.folders()]
        return next((path for path in paths if path.is_file()), None)

    def options(self, group: str) -> list[str]:
        files = (path for folder in self.folders() for path in (folder / group).glob("*.yaml"))
        return sorted({path.stem for path in files})


def _checked(config_dir: Path | None) -> Path | None:
    if config_dir is None:
        return None
    if not config_dir.is_dir():
        raise ConfigError(
            f"--config-dir {config_dir}: no such directory",
            remedy="It should hold groups of its own, e.g. experiment/NAME.yaml.",
        )
    return config_dir.resolve()


# --- overrides -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Override:
    """One override as it goes to Hydra. `key`: the group it chooses from, or the dotted key.
    `plain`: it sets a value (`key=value`, no `+` or `~`)."""

    text: str
    key: str
    plain: bool


def _read(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of each override; every one that cannot be read is named."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[str] = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException:
            problems.append(f"{override!r}: {_unread(override)}")
    if problems:
        raise ConfigError(
            "cannot read the overrides",
            problems=problems,
            remedy="Write key=value, e.g. seed=1; quote lists for the shell: 'a.b=[x,y]'.",
        )
    return parsed


def _unread(override: str) -> str:
    """Why Hydra's grammar does not take `override`, without the grammar's own words."""
    key, equals, value = override.partition("=")
    if not equals:
        return "there is no '='"
    if strange := re.search(r"[^\w.\-/@$~+]", key):
        return f"the key {key!r} holds {strange.group()!r}"
    return f"the value {value!r} cannot be read; quote a text with such signs: {key}='\"...\"'"


def _accepted(overrides: Sequence[str], sources: _Sources) -> list[_Override]:
    """The overrides of one run, as they go to Hydra; every one that makes no sense is named."""
    read = _read(overrides)
    problems = [
        f"{override.input_line}: {reason}"
        for override in read
        if (reason := _refused(override, sources))
    ]
    chosen = [str(each.input_line) for each in read if each.key_or_group == "experiment"]
    if len(chosen) > 1:
        problems.append(f"{' '.join(chosen)}: one run has one experiment")
    if problems:
        raise ConfigError(
            "cannot use the overrides",
            problems=problems,
            remedy="A group is chosen with group=name, a value set with path.to.key=value.",
        )
    return [_normal(override, sources) for override in read]


def _refused(override: Override, sources: _Sources) -> str:
    """Why `override` cannot be part of one run; empty if it can."""
    if override.is_sweep_override():
        return "several values where one run needs one; add --multirun to run each"
    if not override.key_or_group:
        return "there is no key before '='"
    if override.is_hydra_override():
        return "Hydra only composes here, its own settings have no effect"
    return _refused_choice(override, sources) if sources.is_group(override.key_or_group) else ""


def _refused_choice(override: Override, sources: _Sources) -> str:
    if override.is_delete():
        return "a group cannot be left out; choose another option"
    value: object = override.value()
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    if all(isinstance(name, str) and name for name in names):
        return ""
    options = ", ".join(sources.options(override.key_or_group))
    return f"must name an option of {override.key_or_group}: {options}"


def _normal(override: Override, sources: _Sources) -> _Override:
    """Spare the user the `+`: an experiment always has it, another packaged group never, and a
    value is handed over as `++key=value` (its key is checked by the schema)."""
    key, text = override.key_or_group, str(override.input_line)
    bare = text.lstrip("+")
    if key == "experiment":
        return _Override(f"+{bare}", key, plain=False)
    if (sources.packaged / key).is_dir():
        return _Override(bare, key, plain=False)
    if sources.is_group(key) or override.is_delete():
        return _Override(text, key, plain=False)
    return _Override(f"++{bare}", key, plain=bare == text)


# --- hydra ---------------------------------------------------------------------------------------
def _container(overrides: Sequence[str], sources: _Sources) -> dict[str, object]:
    """What Hydra makes of the overrides, resolved, as plain dicts and lists (`???` is kept)."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [*_search_path(sources), *overrides]
    try:
        with initialize_config_dir(str(sources.packaged), version_base="1.3"):
            config = hydra_compose("config", overrides=overrides)
            container = OmegaConf.to_container(config, resolve=True)
    except MissingConfigException as error:
        raise _unknown_option(error, sources) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            "cannot compose the configuration",
            problems=_reasons(error),
            remedy="A group is chosen with group=name, a value set with path.to.key=value.",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            "a configuration file is not valid YAML", problems=str(error).splitlines()
        ) from None
    return cast("dict[str, object]", container)


def _layers(overrides: Sequence[_Override], sources: _Sources) -> list[dict[str, object]]:
    """What `_container` merges, unresolved and in order: each file below its package, then all
    values of the overrides together."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    choices = [*_search_path(sources), *(override.text for override in overrides)]
    with initialize_config_dir(str(sources.packaged), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list("config", choices, RunMode.RUN).defaults
    layers: list[dict[str, object]] = []
    for default in defaults:
        path = sources.file(str(default.config_path))
        if path is None:  # Hydra's own
            continue
        layer = OmegaConf.create()
        content = OmegaConf.load(path)
        if default.package:
            OmegaConf.update(layer, default.package, content, force_add=True)
        else:
            layer.merge_with(content)
        layers.append(cast("dict[str, object]", OmegaConf.to_container(layer)))
    values = OmegaConf.create()
    for override in _read([each.text for each in overrides if not sources.is_group(each.key)]):
        if not override.is_delete():
            OmegaConf.update(values, override.key_or_group, override.value(), force_add=True)
    return [*layers, cast("dict[str, object]", OmegaConf.to_container(values))]


def _search_path(sources: _Sources) -> list[str]:
    return [] if sources.own is None else [f'hydra.searchpath=["file://{sources.own}"]']


def _unknown_option(error: Exception, sources: _Sources) -> ConfigError:
    """An option (or an experiment) that is in no folder: the nearest name and all names."""
    missing = str(getattr(error, "missing_cfg_file", None) or "")
    group, _, name = missing.rpartition("/")
    known = sources.options(group)
    if not known:
        return ConfigError(
            f"no configuration group {group or missing!r}."
            f"{did_you_mean(group or missing, sources.groups())}",
            problems=[f"{each}: {', '.join(sources.options(each))}" for each in sources.groups()],
        )
    nearest = did_you_mean(name, known)
    return ConfigError(
        f"{group}={name}: no such {'experiment' if group == 'experiment' else 'option'}."
        + (nearest if "Did you" in nearest else ""),
        problems=[f"{group}: {', '.join(known)}"],
        remedy=f"Choose one of these, or add {group}/{name}.yaml to a folder of your own and "
        "name it with --config-dir.",
    )


def _reasons(error: BaseException) -> list[str]:
    """The lines of Hydra's message and of what caused it, without its traceback."""
    lines: list[str] = []
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:  # OmegaConf can make an error its own cause
        chain.append(cause)
        lines += [line.strip().replace("++", "") for line in str(cause).splitlines()]
        cause = cause.__cause__
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    return kept or [type(error).__name__]


# --- typing errors in names ----------------------------------------------------------------------
def _named(place: Location, text: str, container: Mapping[str, object], sources: _Sources) -> str:
    """`text`, or for an unknown key at the top level the nearest of all keys and groups."""
    name = str(place[0]) if len(place) == 1 else ""
    if name not in container or name in Experiment.model_fields:
        return text
    groups = set(sources.groups()) - set(Experiment.model_fields)
    hint = did_you_mean(name, {*Experiment.model_fields, *groups})
    for group in groups:
        if hint == f" Did you mean '{group}'?":
            ask = "It is a group." if name == group else f"Did you mean the group '{group}'?"
            hint = f" {ask} Choose from it: {group}=NAME ({', '.join(sources.options(group))})."
    return f"{shown(container[name])}: unknown key.{hint}"


def _with_unknown_names(
    problems: Sequence[tuple[Location, str]], overrides: Sequence[_Override], sources: _Sources
) -> list[str]:
    """One line per problem, but one line per override whose path names an entry that is not there
    (`models.bsae.source=x`) instead of the lines about all the fields the new entry would lack."""
    choices = [override.text for override in overrides if not override.plain]
    known = _container(choices, sources)
    unknown: dict[Location, str] = {}
    for override in overrides:
        found = _unknown_name(override.key.split("."), known) if override.plain else None
        if found is not None:
            unknown[found[0]] = found[1]
    lines = [f"{dotted(place)}: {text}" for place, text in unknown.items()]
    hidden = list(unknown)
    return lines + [
        f"{dotted(place)}: {text}"
        for place, text in problems
        if not any(place[: len(prefix)] == prefix for prefix in hidden)
    ]


def _unknown_name(path: Sequence[str], known: object) -> tuple[Location, str] | None:
    """Where `path` leaves an existing group of named entries, e.g. of `models`."""
    if len(path) < 2 or path[0] not in _NAMED or not isinstance(known, Mapping):
        return None
    entries = cast("Mapping[str, Mapping[str, object]]", known).get(path[0])
    if not entries:
        return None
    if path[1] in entries:
        return None
    return (path[0], path[1]), f"no such entry.{did_you_mean(path[1], entries)}"


_NAMED = tuple(
    name
    for name, field in Experiment.model_fields.items()
    if str(field.annotation).startswith("dict")
)
