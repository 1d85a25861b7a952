"""The module class and the layer of a parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from cpt_residual.modeling.class_names import RowPart

ModuleClass = Literal["attention", "mlp", "embeddings", "head", "norm", "other"]
MODULE_CLASSES: tuple[str, ...] = get_args(ModuleClass)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_CLASSES: tuple[tuple[ModuleClass, re.Pattern[str]], ...] = (  # the first that matches
    ("norm", re.compile(r"norm|\bln_")),
    ("head", re.compile(r"^lm_head\.")),
    ("embeddings", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|moe\b|experts|\bfc\d\b")),
)


def module_of(name: str, rows: Mapping[str, RowPart]) -> ModuleClass:
    """The module class of a parameter: of those with one row per token as the model class says
    (`rows`, see checkpoint.Checkpoint.rows), of all others from its name."""
    if name in rows:
        return rows[name]
    for module, pattern in _CLASSES:
        if pattern.search(name):
            return module
    return "other"


def layer_of(name: str) -> int | None:
    """The layer number of a parameter, from its name; None outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None
