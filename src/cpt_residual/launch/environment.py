"""The only reader of `os.environ`, and the only writer: what other modules need is a value here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cpt_residual
from cpt_residual.config.schema import Launch
from cpt_residual.errors import LaunchError

__all__ = [
    "RankEnvironment",
    "child_environment",
    "let_waiting_threads_sleep",
    "preserved_environment",
    "rank_environment",
    "uses_gpu",
]


@dataclass(frozen=True)
class RankEnvironment:
    """Who this process is among the ranks that torchrun started (0 of 1 without torchrun)."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def rank_environment() -> RankEnvironment:
    """Read RANK, LOCAL_RANK and WORLD_SIZE. Raises LaunchError when only some are set."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return RankEnvironment(0, 0, 1)
    bad = [f"{name}={found.get(name, '<not set>')}" for name in names if not _is_count(found, name)]
    if bad:
        raise LaunchError(
            "the environment names this process's rank only in part",
            problems=bad,
            remedy="Ranks are started by torchrun, which sets all three; unset them otherwise.",
        )
    return RankEnvironment(*(int(found[name]) for name in names))


def _is_count(found: Mapping[str, str], name: str) -> bool:
    return found.get(name, "").isdigit()


def uses_gpu(launch: Launch) -> bool:
    """Whether training and evaluation run on a GPU. Asked without torch: `auto` is a GPU where
    the driver has made its device file."""
    return launch.device == "cuda" or (launch.device == "auto" and Path("/dev/nvidiactl").exists())


def let_waiting_threads_sleep() -> None:
    """Have the maths threads of processes started from now on sleep while they wait for each
    other, unless the user has chosen otherwise. By default they spin, which on a machine that is
    busy with something else made training with two threads 2 to 3 times slower than this."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def child_environment(*, threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that we start: this one's, and

    * PATH begins with the interpreter's folder (an environment that was not activated hides
      pip's `ninja`, which DeepSpeed needs to build its CPU kernels);
    * this package can be imported, however the parent found it;
    * every maths library uses `threads` threads.
    """
    child = dict(os.environ)
    child["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), child.get("PATH", "")])
    package_root = str(Path(cpt_residual.__file__).parents[1])
    paths = [package_root, *filter(None, child.get("PYTHONPATH", "").split(os.pathsep))]
    child["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        child[name] = str(threads)
    child["TOKENIZERS_PARALLELISM"] = "false"
    child.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see let_waiting_threads_sleep
    child.update(extra or {})
    return child


@contextlib.contextmanager
def preserved_environment() -> Generator[None]:
    """Undo every change of `os.environ` made inside (accelerate and Trainer set variables)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
