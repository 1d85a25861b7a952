"""Resolve a command-line argument to an artifact: path, node name or fingerprint prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.core.artifact import Manifest
from cpt_residual.errors import ConfigError, did_you_mean

_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_MOST_LISTED = 12


@dataclass(frozen=True)
class _Known:
    """A published artifact whose manifest can be read."""

    path: Path
    manifest: Manifest

    @property
    def line(self) -> str:
        return f"{self.manifest.node:<28} {self.manifest.fingerprint[:16]}  {self.path}"

    def is_meant(self, word: str) -> bool:
        by_print = _PREFIX.fullmatch(word) and self.manifest.fingerprint.startswith(word)
        return bool(by_print) or word == self.manifest.node


def find_artifact(word: str, *, root: Path, stages: Sequence[str]) -> Path:
    """A folder; else the one artifact of `stages` in the store below `root` whose fingerprint
    begins with `word` (4 digits at least), or whose stage is named so (`pack:cpt`).

    Raises ConfigError with what there is when nothing fits, or more than one does.
    """
    if Path(word).exists():
        return Path(word)
    known = list(_known(root / "store"))
    fitting = [one for one in known if one.is_meant(word)]
    wanted = [one for one in fitting if one.manifest.stage in stages] or fitting
    if len(wanted) == 1:
        return wanted[0].path
    if wanted:
        raise ConfigError(
            f"{word} is the beginning or the name of {len(wanted)} artifacts",
            problems=_listed(wanted),
            remedy="Give more digits of the fingerprint, or the path.",
        )
    offered = [one for one in known if one.manifest.stage in stages]
    if offered:
        hint = did_you_mean(word, [one.manifest.node for one in offered])
        raise ConfigError(
            f"there is neither a folder nor an artifact {word}.{hint}",
            problems=_listed(offered),
            remedy="Give a path, a fingerprint of these or its first digits, or a name.",
        )
    place = root / "store"
    why = f"no pack and no corpus in {place}" if place.is_dir() else f"no such folder: {place}"
    raise ConfigError(
        f"there is neither a folder nor an artifact {word}",
        problems=[why],
        remedy="Give a path, or with --root the paths.root of the experiments: the folder that"
        " holds store and runs.",
    )


def _known(store: Path) -> Iterator[_Known]:
    for path in sorted(store.glob("[!.]*/*/manifest.json")):
        try:
            manifest = Manifest.read(path.parent)
        except ValueError:  # of another version, or damaged: it can still be given by its path
            continue
        if manifest is not None:
            yield _Known(path.parent, manifest)


def _listed(found: Sequence[_Known]) -> list[str]:
    lines = [one.line for one in found[:_MOST_LISTED]]
    return lines + (["..."] if len(found) > _MOST_LISTED else [])
