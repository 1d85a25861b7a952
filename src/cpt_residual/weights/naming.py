"""What the name of a parameter says: its module class and its layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

ModuleClass = Literal["attention", "mlp", "embeddings", "head", "norm", "other"]
HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
MODULE_CLASSES: tuple[str, ...] = get_args(ModuleClass)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_CLASSES: tuple[tuple[ModuleClass, re.Pattern[str]], ...] = (  # the first that matches
    ("norm", re.compile(r"norm|\bln_")),
    ("head", re.compile(r"^lm_head\.")),
    ("embeddings", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn")),
)


def is_vocabulary_tensor(name: str) -> bool:
    """Whether the tensor has one row per token: the embedding and the head."""
    return name.endswith((*_EMBEDDINGS, HEAD))


def head_of_tied(names: Iterable[str], *, tied: bool | None) -> dict[str, str]:
    """{head: the embedding that it repeats} of a model with the tensors `names`, whether the head
    is among them or left out; nothing unless config.json ties them (`tied`) and the embedding can
    be told."""
    owners = [name for name in names if name.endswith(_EMBEDDINGS)]
    return {HEAD: owners[0]} if tied and len(owners) == 1 else {}


def module_of(name: str) -> ModuleClass:
    """The module class of a parameter, from its name."""
    for module, pattern in _CLASSES:
        if pattern.search(name):
            return module
    return "other"


def layer_of(name: str) -> int | None:
    """The layer number of a parameter, from its name; None outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None
