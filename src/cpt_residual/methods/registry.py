"""All ways of adding, by their `kind`: found, never listed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from cpt_residual import methods
from cpt_residual.errors import ConfigError
from cpt_residual.methods.method import Method

GROUP = "cpt_residual.methods"


@cache
def method_classes() -> Mapping[str, type[Method]]:
    """The methods of this package's modules, and those of modules that installed packages name in
    the entry-point group `cpt_residual.methods`. Raises ConfigError for a module that cannot be
    imported, and for two methods of one kind."""
    found: dict[str, type[Method]] = {}
    for module in _modules():
        for each in vars(module).values():
            if not (isinstance(each, type) and issubclass(each, Method)):
                continue
            if each is Method or each.__module__ != module.__name__:
                continue
            kind = str(each.model_fields["kind"].default)
            if kind in found:
                raise ConfigError(
                    f"Two methods have the kind {kind!r}",
                    problems=[f"{one.__module__}.{one.__name__}" for one in (found[kind], each)],
                    remedy="Rename one of them, or uninstall its package.",
                )
            found[kind] = each
    return found


def _modules() -> Iterator[ModuleType]:
    for each in iter_modules(methods.__path__):
        if each.name != "registry":
            yield import_module(f"{methods.__name__}.{each.name}")
    yield from map(_loaded, sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def _loaded(entry: EntryPoint) -> ModuleType:
    try:
        return import_module(entry.module)
    except ImportError as error:
        raise ConfigError(
            f"The installed method {entry.name} cannot be imported",
            problems=[f"entry point {entry.name} = {entry.value} of {GROUP}: {error}"],
            remedy="Repair its package or uninstall it.",
        ) from error


if TYPE_CHECKING:
    AnyMethod = Method
else:  # the union of all of them, told apart by `kind`
    AnyMethod = Annotated[
        reduce(operator.or_, method_classes().values()), Field(discriminator="kind")
    ]
