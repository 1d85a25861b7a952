"""Upload status of W&B runs, and the command that uploads the rest."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cpt_residual.core.files import append_line
from cpt_residual.tracking.series import series_path

_FOLDER = "wandb-runs"
"""One file per node: tasks of an array on several machines must not append to the same one."""


@dataclass(frozen=True)
class Outcome:
    """How one W&B run ended. `failure`: why W&B has not got it, empty when nothing went wrong;
    `folder`: what `wandb sync` uploads, empty when the server has all, or nothing could be kept."""

    run_id: str
    name: str
    node: str
    failure: str = ""
    folder: str = ""

    @property
    def arrived(self) -> bool:
        return not self.failure and not self.folder


def record(run_dir: Path, outcome: Outcome) -> None:
    """For `upload_lines`, which another process calls. Best effort, as on a full disk."""
    folder = run_dir / _FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    append_line(folder / series_path(run_dir, outcome.node).name, json.dumps(asdict(outcome)))


def upload_lines(run_dir: Path, node: str | None = None) -> list[str]:
    """What to say at the end, of one stage or of all; nothing when all runs have arrived."""
    latest = {
        outcome.name: outcome
        for outcome in _read(run_dir / _FOLDER)
        if node is None or outcome.node == node
    }
    missing = [outcome for outcome in latest.values() if not outcome.arrived]
    if not missing:
        return []
    failed = [outcome for outcome in missing if outcome.failure]
    count = f"{len(missing)} of {len(latest)} runs"
    lines = [f"W&B has not received {count}:" if failed else f"W&B: {count} logged offline"]
    lines += [f"  {outcome.name}: {outcome.failure}" for outcome in failed]
    folders = [Path(outcome.folder) for outcome in missing if outcome.folder]
    if folders:
        lines.append(f"upload: wandb sync {_paths(folders)}")
    if any(not outcome.folder for outcome in missing):
        lines.append(f"what W&B kept no copy of is in {run_dir / 'series'}")
    return lines


def _read(folder: Path) -> Iterator[Outcome]:
    """All that can be read: a file or a line that cannot must not fail a stage that was built."""
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    yield Outcome(**json.loads(line))


def _paths(folders: Sequence[Path]) -> str:
    """As the shell takes them; one pattern where it means the same."""
    parent = folders[0].parent
    if len(folders) > 1 and set(parent.glob("offline-run-*")) == set(folders):
        return f"{shlex.quote(str(parent))}/offline-run-*"
    return shlex.join(map(str, sorted(folders)))
