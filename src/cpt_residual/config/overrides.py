"""Overrides of the command line in Hydra's syntax: read, checked, and spread over a sweep."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, cast

from cpt_residual.config.folders import Folders
from cpt_residual.config.validate import shown
from cpt_residual.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_MAX_LENGTH = 20_000
_MAX_RUNS = 10_000


@dataclass(frozen=True)
class Setting:
    """One override. `text`: as it goes to Hydra; `key`: the group it chooses from, or the dotted
    key it sets to `value`. `plain`: written without `+` or `~`."""

    text: str
    key: str
    value: object
    is_choice: bool
    is_delete: bool
    plain: bool


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides per run: the cartesian product of every `key=a,b` and `range(...)`.

    The last sweep varies fastest. Without a sweep, one list that equals `overrides`.
    """
    axes = [_axis(override) for override in _read(overrides)]
    runs = list(islice(product(*axes), _MAX_RUNS + 1))
    if len(runs) > _MAX_RUNS:
        raise ConfigError(
            f"a sweep of more than {_MAX_RUNS:,} runs",
            problems=[f"{axis[0].partition('=')[0]}: {len(axis):,} values" for axis in axes],
            remedy="Nothing was run. List fewer values.",
        )
    return [list(choice) for choice in runs]


def _axis(override: Override) -> list[str]:
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep() or "glob(" in text:
        raise ConfigError(
            f"cannot sweep over {text!r}",
            remedy="A sweep lists its values: key=a,b or key=range(0,5).",
        )
    values = _values(override)
    if not values or len(values) > _MAX_RUNS:
        number = f"more than {_MAX_RUNS:,}" if values else "no"
        raise ConfigError(
            f"cannot sweep over {text!r}: it lists {number} values",
            remedy="Nothing was run. key=range(0,5) is 0, 1, 2, 3 and 4.",
        )
    return [f"{override.get_key_element()}={value}" for value in values]


def _values(override: Override) -> list[str]:
    """The first values of a sweep, as many as can be run and one more."""
    from hydra.core.override_parser.types import RangeSweep

    value = override.value()
    if isinstance(value, RangeSweep):  # it is counted before it is made
        start, stop, step = (float(n or 0) for n in (value.start, value.stop, value.step))
        if step == 0 or (stop - start) / step > _MAX_RUNS:
            return [""] * (_MAX_RUNS + 1)
    return list(islice(override.sweep_string_iterator(), _MAX_RUNS + 1))


# --- reading -------------------------------------------------------------------------------------
def _read(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of each override; every one that cannot be read is named."""
    parsed: list[Override] = []
    problems: list[str] = []
    for override in overrides:
        try:
            parsed.append(_parsed(override))
        except _UnreadError as error:
            problems.append(f"{_short(override)}: {str(error) or _unread(override)}")
    if problems:
        raise ConfigError(
            "cannot read the overrides",
            problems=problems,
            remedy="Write key=value, e.g. seed=1; quote lists for the shell: 'a.b=[x,y]'.",
        )
    return parsed


class _UnreadError(Exception):
    """An override that is not of Hydra's grammar; empty, or the reason."""


def _parsed(override: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(override) > _MAX_LENGTH:
        raise _UnreadError(f"{len(override):,} characters are no override; put it into a file")
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        raise _UnreadError from None
    except ValueError:  # Python's limit for the digits of a number
        raise _UnreadError("it has a number of too many digits") from None
    except RecursionError:
        raise _UnreadError("its brackets are nested too deeply") from None


def _short(override: str) -> str:
    text = repr(override)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _unread(override: str) -> str:
    """Why Hydra's grammar does not take `override`, without the grammar's own words."""
    key, equals, value = override.partition("=")
    if not equals:
        return "there is no '='"
    if "[" in key:
        plain = key.replace("[", ".").replace("]", "")
        return f"the key {key!r} holds '['; an item of a list is named by its number: {plain}"
    if strange := re.search(r"[^\w.\-/@$~+]", key):
        return f"the key {key!r} holds {strange.group()!r}"
    if part := next((p for p in key.split(".") if not re.match(r"[\w$+~]", p)), None):
        return f"the key {key!r} has a part that is no name and no number: {part!r}"
    if not value.isprintable():
        return (
            f"the value {shown(value)} holds what is no text (control characters or broken UTF-8)"
        )
    return _unread_value(key, value)


def _unread_value(key: str, value: str) -> str:
    for opening, closing, name in (("[", "]", "list"), ("{", "}", "mapping")):
        if value.startswith(opening) and not value.endswith(closing):
            whole = shlex.quote(f"{key}={opening}...{closing}")
            return (
                f"the {name} {shown(value)} is not closed; quote the whole override for the shell: "
                f"{whole}"
            )
        if value.startswith(opening):
            inside = '"..."' if name == "list" else 'name: "..."'
            return (
                f"the {name} {shown(value)} cannot be read; quote the texts in it: "
                + shlex.quote(f"{key}={opening}{inside}{closing}")
            )
    example = shlex.quote(_quoted(key, value))
    return f"the value {shown(value)} cannot be read; quote a text with such signs: {example}"


def _quoted(key: str, value: str) -> str:
    value = value if len(value) <= 200 else "..."
    for mark in "\"'":
        if mark not in value and not value.endswith("\\"):
            return f"{key}={mark}{value}{mark}"
    return f'{key}="..."'


# --- one run -------------------------------------------------------------------------------------
def read_settings(overrides: Sequence[str], folders: Folders) -> list[Setting]:
    """The overrides of one run; every one that makes no sense is named."""
    read = _read(overrides)
    problems = [
        f"{_shown(override)}: {reason}"
        for override in read
        if (reason := _refused(override, folders))
    ]
    chosen = [_shown(each) for each in read if each.key_or_group == "experiment"]
    if len(chosen) > 1:
        problems.append(f"{' '.join(chosen)}: one run has one experiment")
    if problems:
        raise ConfigError(
            "cannot use the overrides",
            problems=problems,
            remedy="A group is chosen with group=name, a value set with path.to.key=value.",
        )
    return [_setting(override, folders) for override in read]


def _shown(override: Override) -> str:
    text = str(override.input_line)
    return text if text.isprintable() and len(text) <= 200 else _short(text)


def _refused(override: Override, folders: Folders) -> str:
    """Why `override` cannot be part of one run; empty if it can."""
    key = str(override.key_or_group)
    if override.is_sweep_override():
        return _several(override)
    if not key:
        return "there is no key before '='"
    if override.is_hydra_override() or key == "hydra":
        return "Hydra only composes here, its own settings have no effect"
    if folders.is_group(key):
        return _refused_choice(override, folders)
    if "/" in key or override.package is not None:
        return f"no configuration group {key!r}.{did_you_mean(key, folders.groups())}"
    return ""


def _several(override: Override) -> str:
    """Values with commas: a list, a text, or a sweep."""
    key, _, value = str(override.input_line).partition("=")
    meant: list[str] = []
    if override.is_choice_sweep() and "(" not in value:
        as_list, as_text = f"{key}=[{value}]", _quoted(key, value)
        meant = [f"for a list write {shlex.quote(as_list)}", f"for a text {shlex.quote(as_text)}"]
    return "; ".join(["several values where one run needs one: add --multirun to run each", *meant])


def _refused_choice(override: Override, folders: Folders) -> str:
    if override.is_delete():
        return "a group cannot be left out; choose another option"
    value: object = override.value()
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    if override.key_or_group == "experiment" and len(names) > 1:
        return "one run has one experiment"
    if all(isinstance(name, str) and name for name in names):
        return ""
    options = ", ".join(folders.options(override.key_or_group))
    return f"must name an option of {override.key_or_group}: {options}"


def _setting(override: Override, folders: Folders) -> Setting:
    """Spare the user the `+`: an experiment always has it, another packaged group never. A value
    is set whether its key is there or not (the schema checks keys)."""
    key, text = str(override.key_or_group), str(override.input_line)
    bare = text.lstrip("+")
    is_choice = folders.is_group(key)
    if key == "experiment":
        goes = f"+{bare}"
    elif is_choice and (folders.packaged / key).is_dir():
        goes = bare
    else:
        goes = text
    deletes = override.is_delete()
    return Setting(goes, key, override.value(), is_choice, deletes, not is_choice and bare == text)
