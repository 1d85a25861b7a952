"""Asks a model class, built without storage, how it reads a checkpoint (see class_names).

Names go through the same renamings, conversions and exceptions as in `from_pretrained`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,  # pyright: ignore[reportUnknownVariableType]
)
from transformers.utils import logging as transformers_logging

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.class_names import ClassNames, RowPart, is_left_over
from cpt_residual.modeling.loading import build_on_meta, load_config
from cpt_residual.modeling.tokenizer import UNREADABLE

_NOT_BUILT = (*UNREADABLE, AssertionError, CompatibilityError, ImportError, RuntimeError)
"""What transformers raises for a config.json that it cannot make a causal language model of."""
_MAX_REASON = 200


class _Class(NamedTuple):
    """A model without storage, its state's names, and how it renames those of a file."""

    model: Any  # PreTrainedModel, whose annotations are partly unknown
    state: dict[str, Any]
    renamings: list[WeightRenaming]
    converters: list[WeightConverter]
    embeddings: nn.Module | None
    head: nn.Module | None

    def paths(self) -> dict[str, nn.Module]:
        """Its modules by name."""
        return dict(self.model.named_modules())


def ask_class(folder: Path, stored: Sequence[str]) -> ClassNames:
    """How the class of config.json in `folder` reads tensors called `stored`. No weight is read or
    allocated. A class that cannot be built is reported in `unknown`."""
    try:
        found = (folder / "config.json").stat()
    except OSError as error:
        return _unknown(stored, error)
    return _answer(folder, (found.st_mtime_ns, found.st_size, found.st_ino), tuple(stored))


@lru_cache(maxsize=8)
def _answer(folder: Path, state: tuple[int, ...], stored: tuple[str, ...]) -> ClassNames:
    """`state` tells two versions of config.json apart. What is kept is names, not the model."""
    del state
    try:
        built = _built(folder)
    except _NOT_BUILT as error:
        return _unknown(stored, error)
    names: dict[str, str] = {}
    unread: list[str] = []
    for name in stored:
        renamed, is_read = _renamed(name, built)
        if not is_read and (_is_ignored(renamed, built) or is_left_over(renamed)):
            unread.append(name)
        else:
            names[name] = renamed if is_read else name
    return ClassNames(
        class_name=type(built.model).__name__,
        names=names,
        unread=tuple(unread),
        rows=dict(_rows(built)),
        tied=dict(built.model.all_tied_weights_keys),
        text=_text_names(built),
    )


def _unknown(stored: Sequence[str], error: Exception) -> ClassNames:
    return ClassNames("", {name: name for name in stored}, unknown=_reason(error))


def _reason(error: Exception) -> str:
    """The first sentence of what transformers says: it goes on with advice."""
    lines = error.problems if isinstance(error, CompatibilityError) else str(error).splitlines()
    text = next(iter(lines), type(error).__name__)
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0][:_MAX_REASON]


def _built(folder: Path) -> _Class:
    """The class of config.json in `folder`."""
    with _quietly():
        return _class_of(load_config(folder))


@contextmanager
def _quietly() -> Generator[None]:
    """transformers warns of token ids in a config that it only builds."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _class_of(config: PreTrainedConfig) -> _Class:
    model = build_on_meta(config)
    transforms = get_model_conversion_mapping(model)
    return _Class(
        model=model,
        state=model.state_dict(),
        renamings=[each for each in transforms if isinstance(each, WeightRenaming)],
        converters=[each for each in transforms if isinstance(each, WeightConverter)],
        embeddings=cast("Any", model).get_input_embeddings(),
        head=cast("Any", model).get_output_embeddings(),
    )


def _renamed(name: str, built: _Class) -> tuple[str, bool]:
    """The class's name of a stored tensor, and whether the class reads it. What is joined with
    others has the name of the whole and its own after it."""
    prefix, state = built.model.base_model_prefix, built.state
    renamed, converter = rename_source_key(name, built.renamings, built.converters, prefix, state)
    if renamed not in state and name in state:
        renamed, converter = rename_source_key(name, [], [], prefix, state)
    if converter is None or renamed not in state:
        return renamed, renamed in state
    part, _ = rename_source_key(name, built.renamings, [])
    return f"{renamed} {part.removeprefix(f'{prefix}.')}", True


def _is_ignored(name: str, built: _Class) -> bool:
    """Whether from_pretrained passes over a stored tensor of this (renamed) name."""
    report = _Report({name})
    built.model._adjust_missing_and_unexpected_keys(report)  # noqa: SLF001 - the class's own rules
    return not report.unexpected_keys


class _Report:
    """What from_pretrained has found, as far as its exceptions are about names."""

    def __init__(self, unexpected: set[str]) -> None:
        self.missing_keys: set[str] = set()
        self.unexpected_keys = unexpected


def _rows(built: _Class) -> Iterator[tuple[str, RowPart]]:
    """The parameters of the input and output embeddings, and of embeddings that some classes keep
    per layer, by name."""
    for path, module in built.paths().items():
        per_layer = isinstance(module, nn.Embedding) and "embed_tokens" in path.split(".")[-1]
        part: RowPart = "head" if module is built.head else "embeddings"
        if module is built.embeddings or module is built.head or per_layer:
            for name, _ in module.named_parameters():
                yield f"{path}.{name}", part


def _text_names(built: _Class) -> Mapping[str, str]:
    """Names of the text part to those of the text-only class; nothing for a class that reads text
    alone, and unless the part is that class, parameter by parameter."""
    config = built.model.config
    if config.get_text_config() is config:
        return {}
    text = _class_of(config.get_text_config())
    decoder = built.model.get_decoder()
    path = next((path for path, module in built.paths().items() if module is decoder), "")
    prefix = f"{text.model.base_model_prefix}."
    mapped = {
        name: name if name in text.state else prefix + name.removeprefix(f"{path}.")
        for name in built.state
        if name.startswith(f"{path}.") or name in text.state
    }
    return mapped if path and sorted(mapped.values()) == sorted(text.state) else {}
