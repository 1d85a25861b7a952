"""Renamed keys of `conf/`: an old name is an error that says the new one."""

from __future__ import annotations

from collections.abc import Container, Mapping

RENAMED: Mapping[str, str] = {
    "passes": "filters",
    "max_passes": "max_epochs",
}
"""New name by old name. In a recipe a renamed field keeps its old name as `serialization_alias`, so
that fingerprints do not move."""


def renamed(key: str, known: Container[str]) -> str | None:
    """The new name of `key`, where the mapping it is in may hold that (`known`)."""
    new = RENAMED.get(key)
    return new if new is not None and new in known else None
