"""Garbage collection of artifacts that no recorded run refers to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from cpt_residual.core.artifact import MANIFEST
from cpt_residual.core.lock import describe_holder, hold
from cpt_residual.core.store import Store
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, BusyError


@dataclass(frozen=True)
class GarbageItem:
    """Something to delete. `key` (`<stage>-<fingerprint[:16]>`) names the lock that protects it;
    empty for what nobody can be using."""

    path: Path
    bytes: int
    reason: str
    key: str = ""


class _PlanNode(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    fingerprint: str


class _Plan(BaseModel):
    """The part of a run's plan that matters here: what it may read or build."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nodes: list[_PlanNode] = Field(validation_alias=AliasChoices("rows", "nodes"))


def collect(store: Store, runs_dir: Path) -> list[GarbageItem]:
    """What can be deleted: artifacts and scratch that no `runs_dir/*/plan.json` names, scratch of
    artifacts that are published, and remains of earlier deletions. Deletes nothing.

    What is being built right now is left out. ArtifactError for a plan that cannot be read, and
    without a `runs_dir`: what is referred to is unknown then, and would be deleted.
    """
    kept = _referenced(runs_dir)
    if not runs_dir.is_dir():
        _require_empty(store, runs_dir)
    items = [*_artifacts(store, kept), *_scratch(store, kept), *_trash(store)]
    return [item for item in items if not _locked(store, item)]


def delete(store: Store, items: Iterable[GarbageItem]) -> list[GarbageItem]:
    """Delete items and return those deleted; what has been locked since it was listed stays.

    Each goes by one rename first, so that a kill leaves no half artifact in its place.
    """
    deleted: list[GarbageItem] = []
    for item in items:
        with contextlib.suppress(BusyError), _protected(store, item):
            store.discard(item.path)
            deleted.append(item)
    return deleted


def _referenced(runs_dir: Path) -> set[str]:
    keys: set[str] = set()
    problems: list[str] = []
    for path in sorted(runs_dir.glob("*/plan.json")):
        try:
            plan = _Plan.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problems += [f"{path}: {problem}" for problem in field_problems(error)]
            continue
        keys |= {f"{node.stage}-{node.fingerprint[:16]}" for node in plan.nodes}
    if problems:
        raise ArtifactError(
            "what some recorded runs refer to cannot be read",
            problems=problems,
            remedy="Nothing was deleted. Delete the run folders that are no longer wanted.",
        )
    return keys


def _require_empty(store: Store, runs_dir: Path) -> None:
    held = [path for stage in _folders(store.root) for path in _folders(stage)]
    held += _folders(store.root / ".work")
    if held:
        raise ArtifactError(
            f"there is no folder of runs at {runs_dir}: everything in the store would be garbage",
            problems=[f"{len(held)} artifact(s) and scratch folder(s) in {store.root}"],
            remedy="Nothing was deleted. Put the folder back beside the store; an empty one says "
            "that no run is kept, and all of it may go.",
        )


def _artifacts(store: Store, kept: set[str]) -> Iterator[GarbageItem]:
    for stage in _folders(store.root):
        for path in _folders(stage):
            key = f"{stage.name}-{path.name}"
            if key not in kept:
                yield GarbageItem(path, _size(path), "no recorded run refers to it", key)


def _scratch(store: Store, kept: set[str]) -> Iterator[GarbageItem]:
    for path in _folders(store.root / ".work"):
        stage, _, fingerprint = path.name.rpartition("-")
        if path.name not in kept:
            reason = "scratch of a stage that no recorded run refers to"
        elif (store.root / stage / fingerprint / MANIFEST).exists():
            reason = "scratch of an artifact that is published"
        else:
            continue  # checkpoints of a recorded run
        yield GarbageItem(path, _size(path), reason, path.name)


def _trash(store: Store) -> Iterator[GarbageItem]:
    trash = store.root / ".trash"
    for path in sorted(trash.iterdir()) if trash.is_dir() else ():
        yield GarbageItem(path, _size(path), "left by an interrupted deletion")


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _size(path: Path) -> int:
    """Bytes freed by deleting `path`; what links point to stays and does not count."""
    paths = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    return sum(each.lstat().st_size for each in paths if each.is_symlink() or each.is_file())


def _locked(store: Store, item: GarbageItem) -> bool:
    return bool(item.key) and describe_holder(store.lock_path_of(item.key)) is not None


def _protected(store: Store, item: GarbageItem) -> contextlib.AbstractContextManager[None]:
    if not item.key:
        return contextlib.nullcontext()
    return hold(store.lock_path_of(item.key), name=item.path.name)
