"""Validation of W&B project, entity and run names before a run starts."""

from __future__ import annotations

MAX_NAME_CHARACTERS = 128
"""Of a project, an entity, a run's id, its name, its group and its job type."""

MAX_TAG_CHARACTERS = 64
_FORBIDDEN = "/\\#?%:"


def problem_of_name(name: str) -> str | None:
    """Why W&B would refuse a project or an entity of this name, or None."""
    if not name.strip():
        return "W&B takes no empty name"
    if name != name.strip():
        return "W&B takes no name that begins or ends with a space"
    if len(name) > MAX_NAME_CHARACTERS:
        return f"has {len(name)} characters; W&B takes at most {MAX_NAME_CHARACTERS}"
    wrong = dict.fromkeys(c for c in name if c in _FORBIDDEN or not c.isprintable())
    if wrong:
        found = " ".join(c if c.isprintable() else ascii(c) for c in wrong)
        return (
            f"contains {found}; W&B takes none of {' '.join(_FORBIDDEN)} and no control character"
        )
    return None
