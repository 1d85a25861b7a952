"""A model by its reference, `DIRECTORY` or `ORG/NAME@COMMIT`, opened, and named without a path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.home import expanded
from cpt_residual.core.files import text_of_name
from cpt_residual.launch.hub import HubModel, hub_model, snapshot
from cpt_residual.weights.io.checkpoint import Checkpoint, open_checkpoint
from cpt_residual.weights.io.shard_header import Shard

ModelReference = str | Path | HubModel
"""A directory, or `ORG/NAME@COMMIT` on the hub. A Path is always a directory."""


@dataclass(frozen=True)
class NamedModel:
    """An opened model and what to call it in records that travel: its hub id, or the last part of
    its directory's name. revision: the commit, None for a directory."""

    checkpoint: Checkpoint
    name: str
    revision: str | None = None


def pinned(reference: ModelReference, *, role: str) -> Path | HubModel:
    """A reference that names the same files tomorrow: `ORG/NAME` gets the commit of this moment.

    What begins with a file or directory that exists here is never looked for on the hub. Raises
    ConfigError and ArtifactError (see launch.hub)."""
    if isinstance(reference, HubModel):
        return reference
    path = expanded(reference)
    if isinstance(reference, Path) or path.exists() or Path(path.parts[0]).exists():
        return path
    return hub_model(reference, role=role) or path


def open_named(reference: ModelReference, *, role: str) -> NamedModel:
    """The model that a reference names, downloaded where needed; only headers are read.

    Links may leave the directory in the hub's cache alone. Raises as `open_checkpoint` does."""
    found = pinned(reference, role=role)
    folder = snapshot(found, role=role) if isinstance(found, HubModel) else found
    checkpoint = open_checkpoint(folder, role=role, links_allowed=isinstance(found, HubModel))
    if isinstance(found, HubModel):
        return NamedModel(checkpoint, found.hub_id, found.revision)
    return NamedModel(checkpoint, name_of(folder))


def name_of(path: Path) -> str:
    """What to call a directory where its place must not be told."""
    return text_of_name(path.absolute().name) or "model"


def headers_hash(shards: Iterable[Shard]) -> str:
    """sha256 over the names, sizes and headers of shards: which layout, not which numbers."""
    digest = hashlib.sha256()
    for shard in sorted(shards, key=lambda shard: shard.name):
        digest.update(f"{shard.name}\n{shard.num_bytes}\n".encode())
        digest.update(hashlib.sha256(shard.header).digest())
    return digest.hexdigest()
