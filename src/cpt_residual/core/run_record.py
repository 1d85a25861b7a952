"""The folder of a run, with git state and library versions."""

from __future__ import annotations

import functools
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import cpt_residual
from cpt_residual.core.hashing import file_sha256, text_sha256

LIBRARIES = (
    "accelerate",
    "datasets",
    "deepspeed",
    "lm_eval",
    "numba",
    "numpy",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
_GIT_SECONDS = 10


class GitState(TypedDict):
    """commit: 40 hex digits, None outside a repository; dirty: None when unknown."""

    commit: str | None
    dirty: bool | None


def new_run_dir(runs_root: Path, experiment: str, plan_fingerprint: str) -> Path:
    """Create `runs_root/<utc>-<experiment>-<id>`; no two runs ever get the same folder.

    The id is the start of the plan's fingerprint, so that runs of one plan are seen together.
    """
    runs_root.mkdir(parents=True, exist_ok=True)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{moment}-{experiment}-{plan_fingerprint[:8]}"
    folder, attempt = runs_root / name, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            attempt += 1
            folder = runs_root / f"{name}-{attempt}"
        else:
            return folder


def git_state(cwd: Path) -> GitState:
    """Commit and cleanliness of the repository around `cwd`. Never fails: without git, without a
    repository or without a commit both are None."""
    commit = _git(cwd, "rev-parse", "--verify", "HEAD")
    changes = _git(cwd, "status", "--porcelain") if commit else None
    dirty = None if changes is None else bool(changes)
    return GitState(commit=commit or None, dirty=dirty)


def _git(cwd: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def code_version() -> str:
    """Version of this package and a hash of its source files, which also sees local edits."""
    root = Path(cpt_residual.__file__).parent
    sources = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    text = "\n".join(f"{name} {file_sha256(path)}" for name, path in sorted(sources.items()))
    return f"{_version_of('cpt_residual') or 'unknown'}+{text_sha256(text)[:12]}"


@functools.cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a number; none of them is imported."""
    versions = {name: _version_of(name) for name in LIBRARIES}
    return {name: version for name, version in versions.items() if version is not None}


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
