"""Expansion of `~` in paths given by users."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(text: str | Path) -> Path:
    """A path with `~` and `~user` replaced by the home, unless there is no such user, or something
    here is called `~user`."""
    path = Path(text)
    if path.parts[:1] != ("~",) and os.path.lexists(Path(*path.parts[:1])):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        return path
