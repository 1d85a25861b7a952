"""Atomic checkpoints.

A checkpoint counts only when its marker file is there; the marker is written last, after every
rank has written and synced its part. Everything without a marker is debris of a kill.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cpt_residual.core.files import sync_tree, write_json_atomic
from cpt_residual.errors import LaunchError, WorkerError
from cpt_residual.train.job import Layout

_PREFIX = "checkpoint-"  # Trainer's own name for the folder of a step
_MARKER = "COMPLETE.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the step after which it was written."""

    path: Path
    step: int


def last_complete(folder: Path, layout: Layout) -> Checkpoint | None:
    """The newest complete checkpoint below `folder`; debris is deleted on the way.

    To be called by one process, before the ranks start. Raises LaunchError when the checkpoint was
    written by another layout of processes, WorkerError when files are missing from it."""
    found: list[Checkpoint] = []
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        if (path / _MARKER).exists():
            found.append(Checkpoint(path, int(path.name.removeprefix(_PREFIX))))
        else:
            shutil.rmtree(path)
    if not found:
        return None
    newest = max(found, key=lambda each: each.step)
    _check(newest, layout)
    return newest


def _check(checkpoint: Checkpoint, layout: Layout) -> None:
    marker = json.loads((checkpoint.path / _MARKER).read_text())
    written = Layout.model_validate(marker["layout"])
    if written != layout:
        wanted = layout.model_dump()
        raise LaunchError(
            f"the checkpoint of step {checkpoint.step} does not fit this launch",
            problems=[
                f"{name}: checkpoint {value}, now {wanted[name]}"
                for name, value in written.model_dump().items()
                if value != wanted[name]
            ],
            remedy="Sharded optimizer states load only into the layout that wrote them. Rerun with "
            f"the launch and deepspeed settings of the checkpoint, or delete {checkpoint.path} "
            "to start this stage again.",
        )
    bad = [
        f"{name}: expected {size} bytes, found {_size(checkpoint.path / name)}"
        for name, size in marker["files"].items()
        if _size(checkpoint.path / name) != size
    ]
    if bad:
        raise WorkerError(
            f"the checkpoint of step {checkpoint.step} has been changed since it was written",
            problems=bad,
            remedy=f"Delete {checkpoint.path} to start this stage again.",
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def mark_complete(path: Path, layout: Layout) -> None:
    """Declare the checkpoint complete. All ranks must have written their files before."""
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != _MARKER
    }
    marker: dict[str, JsonValue] = {"files": {**files}, "layout": layout.model_dump(mode="json")}
    sync_tree(path)
    write_json_atomic(path / _MARKER, marker)


def discard_older(folder: Path, newest: Path) -> None:
    """Delete every checkpoint but `newest`; the marker goes first, so that a kill in between
    leaves debris and not a checkpoint with missing files."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path != newest:
            (path / _MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)
