"""The manifest beside the files of an artifact of data."""

from __future__ import annotations

from pathlib import Path

from cpt_residual.core.artifact import Manifest
from cpt_residual.errors import CorruptArtifactError


def read_manifest(path: Path) -> Manifest | None:
    """The manifest beside the files, or None. Raises CorruptArtifactError for one that is not ours
    or was edited."""
    try:
        return Manifest.read(path)
    except ValueError as error:
        raise CorruptArtifactError(
            f"the manifest of {path} cannot be trusted",
            problems=[" ".join(str(error).split())[:400]],
            remedy="Delete the artifact and run again; it will be rebuilt. To look at the files "
            "alone, copy them to a folder without manifest.json.",
        ) from error
