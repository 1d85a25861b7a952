"""What a stage needs to know of its input stages: documents, sizes, weights, token maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cpt_residual.core.artifact import Manifest
from cpt_residual.core.stage import ArtifactRef, Stage

if TYPE_CHECKING:
    from cpt_residual.weights.io.checkpoint import Checkpoint


@dataclass(frozen=True)
class CorpusInput:
    """Document files inside the artifact of `stage`.

    documents: the training documents, e.g. `documents.jsonl` or `general.jsonl`;
    heldout: documents that are never trained on, or None when the corpus holds none out.
    """

    stage: Stage
    documents: str
    heldout: str | None = None


@runtime_checkable
class _Sized(Protocol):
    """A stage that makes a model and knows its size."""

    def num_parameters(self) -> int: ...


def num_parameters_of(stage: Stage) -> int:
    """What a model stage says of its size; 0 when it does not know before it is built."""
    return stage.num_parameters() if isinstance(stage, _Sized) else 0


def model_bytes_of(stage: Stage) -> int:
    """Size of a model's weights on disk; of a linked one, two bytes a parameter are assumed."""
    return stage.cost().disk_bytes or 2 * num_parameters_of(stage)


def open_model(ref: ArtifactRef, *, role: str) -> Checkpoint:
    """The weights of a model artifact. Links are followed only where the source stage made them."""
    from cpt_residual.weights.io.checkpoint import open_checkpoint

    return open_checkpoint(ref.path, role=role, links_allowed=ref.stage == "source")


def published_hashes(ref: ArtifactRef) -> dict[str, str]:
    """sha256 of the files of an artifact, as its manifest has them; none without one."""
    manifest = Manifest.read(ref.path)
    return {name: record.sha256 for name, record in manifest.files.items()} if manifest else {}
