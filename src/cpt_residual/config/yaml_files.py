"""Read one configuration file: text, package directive, defaults list, permitted values.

YAML can say more than a configuration needs: objects of Python, references that unfold to millions
of values, numbers of any length. What a file of the user's cannot mean is refused here with its
line, before anything is made of it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import cast

from cpt_residual.errors import ConfigError

GLOBAL = "_global_"
PACKAGE_LINE = f"# @package {GLOBAL}"
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 30
_MAX_VALUES = 100_000
_MAX_DIGITS = 40
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp", "value")
)


@dataclass(frozen=True)
class ConfigFile:
    """What a file holds. `package`: where its keys go, None if its first lines do not say."""

    path: Path
    package: str | None
    content: Mapping[str, object]
    defaults: list[object]


def read_file(path: Path, *, trusted: bool) -> ConfigFile:
    """The file at `path`. Raises ConfigError that names it; a `trusted` one is only parsed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = _text(path)
    try:
        if not trusted:
            _check_nodes(path, text)
        loaded = OmegaConf.load(StringIO(text))
        content = OmegaConf.to_container(loaded)
    except YAMLError as error:
        raise _bad(path, "it is not valid YAML", *_lines(error)) from None
    except OmegaConfBaseException as error:
        raise _bad(path, "it cannot be read", *_lines(error)) from None
    except RecursionError:
        raise _bad(path, "its values are nested too deeply") from None
    if not isinstance(content, dict):
        raise _bad(path, "it is a list; a configuration file is a mapping: lines of `key: value`")
    mapping = cast("dict[str, object]", content)
    defaults = mapping.pop("defaults", [])
    if not trusted:
        _check_keys(path, mapping, defaults)
    return ConfigFile(path, _package(path, text), mapping, cast("list[object]", defaults))


def _bad(path: Path, reason: str, *problems: str) -> ConfigError:
    return ConfigError(
        f"{path}: {reason}", problems=problems, remedy="Nothing was run. Correct the file."
    )


def _lines(error: Exception) -> list[str]:
    """What a library found, without the names that it gives to texts."""
    from yaml import MarkedYAMLError

    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}"
        return [f"{where}: {error.problem} {error.context or ''}".rstrip()]
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line and not line.startswith(("full_key", "object_type"))]


# --- text ----------------------------------------------------------------------------------------
def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise _bad(path, f"{len(data):,} bytes are no configuration (at most {_MAX_BYTES:,})")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _bad(path, "it is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _bad(
            path, f"line {line} is not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from None


def _package(path: Path, text: str) -> str | None:
    """What the comment lines at the top say: `# @package NAME`."""
    for number, line in enumerate(text.splitlines(), start=1):
        comment = re.fullmatch(r"\s*(?:#(.*))?", line)
        if comment is None:
            return None
        stated = re.match(r"\s*@\s*package\b(.*)", comment[1] or "")
        if stated is None:
            continue
        name = stated[1].strip()
        if re.fullmatch(r"[\w.\-]+", name) is None:
            raise _bad(path, f"line {number} names no package: {line!r}", f"e.g. {PACKAGE_LINE}")
        return name
    return None


# --- what YAML may say ---------------------------------------------------------------------------
def _check_nodes(path: Path, text: str) -> None:
    """Raise ConfigError for values that no configuration has, by the line where they stand."""
    import yaml

    root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))
    if root is not None:
        _num_values(path, root, {}, 1)


def _num_values(path: Path, node: object, counted: dict[int, int], depth: int) -> int:
    """How many values `node` unfolds to; each node is looked at once (references share nodes)."""
    import yaml

    assert isinstance(node, yaml.Node)
    if id(node) in counted:
        return counted[id(node)]
    line = f"line {node.start_mark.line + 1}"
    if str(node.tag) not in _PLAIN_TAGS:
        raise _bad(path, f"{line}: the tag {_short_tag(str(node.tag))} has no place here")
    if depth > _MAX_DEPTH:
        raise _bad(path, f"{line}: its values are nested too deeply (at most {_MAX_DEPTH} levels)")
    counted[id(node)] = _MAX_VALUES + 1  # met again below itself: a reference to what holds it
    total = 1
    for child in _children(node):
        total += _num_values(path, child, counted, depth + 1)
        if total > _MAX_VALUES:
            raise _bad(path, f"{line}: its references unfold to more than {_MAX_VALUES:,} values")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(path, line, node)
    counted[id(node)] = total
    return total


def _children(node: object) -> Iterator[object]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for pair in cast("list[tuple[object, object]]", node.value):
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from cast("list[object]", node.value)


def _check_scalar(path: Path, line: str, node: object) -> None:
    import yaml

    assert isinstance(node, yaml.ScalarNode)
    value = str(node.value)
    if str(node.tag).endswith((":int", ":float")) and len(value) > _MAX_DIGITS:
        raise _bad(path, f"{line}: a number of {len(value):,} characters: {value[:20]}...")


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


# --- keys that composition reads ------------------------------------------------------------------
def _check_keys(path: Path, content: Mapping[str, object], defaults: object) -> None:
    if "hydra" in content:
        raise _bad(path, "it has a key `hydra`, but Hydra only composes here; leave it out")
    if not isinstance(defaults, list):
        raise _bad(
            path,
            f"its `defaults` must be a list, not {defaults!r:.60}",
            "e.g. defaults: [tiny, _self_]",
        )
    items = cast("list[object]", defaults)
    problems = [reason for item in items if (reason := _refused_default(item))]
    if problems:
        raise _bad(path, "its defaults list cannot be used", *problems)


def _refused_default(item: object) -> str:
    """Why `item` cannot stand in a defaults list; empty if it can."""
    if isinstance(item, str) and item.strip("/ "):
        return ""
    entries = list(cast("dict[object, object]", item).items()) if isinstance(item, dict) else []
    if len(entries) != 1 or not isinstance(entries[0][0], str):
        return f"{item!r:.60}: must be a name, or one `group: name`"
    group, value = str(entries[0][0]), entries[0][1]
    if not group.rpartition(" ")[2].strip("/"):
        return f"{group!r}: names no group"
    if group.rpartition(" ")[2].lstrip("/").startswith("hydra"):
        return f"{group}: Hydra only composes here, its own settings have no effect"
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    return next(filter(None, (_refused_name(group, name) for name in names)), "")


def _refused_name(group: str, name: object) -> str:
    if isinstance(name, bool):
        word = "on" if name else "off"
        return f'{group}: {name!r}: YAML reads a bare {word} as {name!r}: write "{word}"'
    if name is None or (isinstance(name, str) and name):
        return ""
    return f'{group}: {name!r:.60}: must be a name; quote it: "{name}"'
