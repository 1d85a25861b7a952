"""Imports of lm-eval and its companions, which are untyped and slow, on demand."""

from __future__ import annotations

import importlib
from typing import Any


def lazy_import(module: str) -> Any:
    """A module as `Any`; whoever calls it says what types come out."""
    return importlib.import_module(module)
