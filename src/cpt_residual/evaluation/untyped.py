"""lm-eval and its companions. They are untyped and slow to import: one door, on demand."""

from __future__ import annotations

import importlib
from typing import Any


def untyped(module: str) -> Any:
    """A module as `Any`; whoever calls it says what types come out."""
    return importlib.import_module(module)
