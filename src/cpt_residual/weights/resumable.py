"""An output directory that appears whole or not at all, and whose work survives a kill.

Work goes to `.NAME.partial` beside the output. A journal in it names the shards that are on disk
for good; a later call with the same stamp (same inputs, same recipe) takes them over and starts
afresh with any other. A shard counts only after its bytes have been flushed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field, ValidationError

from cpt_residual.config.schema import Frozen
from cpt_residual.core.files import sync_directory, write_json_atomic
from cpt_residual.errors import ArtifactError, CptResidualError
from cpt_residual.weights.kernels import MergeSums

_JOURNAL = ".journal.json"


class _Journal(Frozen):
    stamp: str
    shards: dict[str, MergeSums] = Field(default_factory=dict)


class OutputFolder:
    """`with OutputFolder(out, stamp=...) as folder:` gives the partial directory; `publish` makes
    it `out`. An error of the user's to mend removes the partial directory; a kill or an interrupt
    leaves it for the next call. Raises ArtifactError when `out` holds anything."""

    def __init__(self, out: Path, *, stamp: str) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.partial")
        self._journal = _Journal(stamp=stamp)

    def __enter__(self) -> Self:
        require_free(self.out)
        found = _read(self.path / _JOURNAL)
        if found is not None and found.stamp == self._journal.stamp:
            self._journal = found
        elif self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.path / _JOURNAL, self._journal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, CptResidualError):
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def done(self) -> Mapping[str, MergeSums]:
        """Shards that are complete, with the sums over their elements."""
        return self._journal.shards

    def start(self, shard: str) -> Path:
        """Where to write a shard that is not done; what a kill has left there is removed."""
        path = self.path / shard
        path.unlink(missing_ok=True)
        return path

    def complete(self, shard: str, sums: MergeSums) -> None:
        """Records a shard whose bytes have been flushed to disk."""
        shards = {**self._journal.shards, shard: sums}
        self._journal = self._journal.model_copy(update={"shards": shards})
        write_json_atomic(self.path / _JOURNAL, self._journal)

    def publish(self) -> None:
        """The partial directory becomes the output."""
        (self.path / _JOURNAL).unlink()
        sync_directory(self.path)
        if self.out.exists():
            self.out.rmdir()
        self.path.rename(self.out)
        sync_directory(self.out.parent)


def require_free(out: Path) -> None:
    """ArtifactError unless `out` is absent or an empty directory in a place that can be written."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ArtifactError(
            f"The output {out} exists and is not an empty directory",
            remedy="Nothing is overwritten. Choose another directory or remove it.",
        )
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"The output {out} cannot be written: {place} is "
            f"{'read-only' if place.is_dir() else 'not a directory'}",
            remedy="Nothing was done. Choose another directory.",
        )


def _read(path: Path) -> _Journal | None:
    try:
        return _Journal.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
