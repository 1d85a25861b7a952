"""The only reader of `os.environ`, and the only writer: what other modules need is a value here."""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import cpt_residual
from cpt_residual.errors import LaunchError

if TYPE_CHECKING:
    from cpt_residual.config.schema import Launch

_ASK_TORCH = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_ASK_SECONDS = 120


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


def rendezvous_of(num_nodes: int) -> str | None:
    """HOST:PORT where the ranks of several nodes meet, the first of the SLURM job that this process
    runs in; None for one node. LaunchError unless the job has as many nodes."""
    if num_nodes == 1:
        return None
    has = os.environ.get("SLURM_JOB_NUM_NODES", "no job")
    if has != str(num_nodes):
        raise LaunchError(
            f"training on {num_nodes} nodes needs a SLURM job of as many",
            problems=[f"launch.num_nodes={num_nodes}", f"nodes of the SLURM job: {has}"],
            remedy="Submit the plan with slurm/submit.py, or set launch.num_nodes=1.",
        )
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{os.environ.get('SLURMD_NODENAME', socket.gethostname())}:{free.getsockname()[1]}"


def uses_gpu(launch: Launch) -> bool:
    """Whether training and evaluation run on a GPU. Asked without torch: `auto` is a GPU where
    the driver has made its device file."""
    return launch.device == "cuda" or (launch.device == "auto" and Path("/dev/nvidiactl").exists())


def visible_gpus() -> int | None:
    """How many GPUs torch can use. Asked in a process of its own, which takes seconds and leaves
    no torch here; None when there is no answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def named_gpus() -> tuple[str, ...] | None:
    """The entries of CUDA_VISIBLE_DEVICES: numbers, or names of GPUs and MIG devices; as CUDA does,
    up to a negative one. None when it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    entries = [entry.strip() for entry in text.split(",")]
    return tuple(takewhile(lambda entry: entry and not entry.startswith("-"), entries))


def show_gpus(gpus: Sequence[str]) -> None:
    """Let this process and its children see these GPUs only. To be called before CUDA is used."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)


def too_few_gpus(launch: Launch, found: int) -> LaunchError:
    """The error for `found` visible GPUs where `launch` needs more."""
    asked = f"launch.device={launch.device}"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = [] if shown is None else [f"CUDA_VISIBLE_DEVICES={shown}"]
    if found == 0:
        return LaunchError(
            "no GPU is visible",
            problems=[asked, *hidden],
            remedy="Set launch.device=cpu, or see that the driver shows a GPU (nvidia-smi) and "
            "that the installed torch is built for it.",
        )
    return LaunchError(
        "there are fewer GPUs than processes",
        problems=[
            f"launch.num_processes={launch.num_processes}",
            f"GPUs visible: {found}",
            asked,
            *hidden,
        ],
        remedy=f"Set launch.num_processes={found}, or launch.device=cpu.",
    )


def set_maths_defaults() -> None:
    """What the maths libraries of processes started from now on are told, where the user has not
    chosen otherwise.

    * Threads wait for each other awake for some microseconds only, then asleep. A training step
      of the tiny model with two threads, in ms on two cores, idle / beside a busy process: awake
      for long (libgomp's default) 125 / 300 to 415, asleep at once 160 / 260, so 125 / 280 to 330.
    * MKL gives the same bits in every run with the same number of threads, which it does not
      promise otherwise (oneMKL Developer Guide, "Reproducibility conditions"). The bits and the
      speed are those without it.
    """
    _set_maths_defaults(os.environ)


def _set_maths_defaults(environment: MutableMapping[str, str]) -> None:
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")
    environment.setdefault("MKL_CBWR", "AUTO")


def set_user_defaults() -> None:
    """A home and a name for a user that the system does not know (a number given to a container):
    libraries ask for both, some while they are imported, and raise KeyError or RuntimeError, or
    make a folder called `~`.

    The home is a private folder below the system's temporary one. Where a home is named that takes
    no files, it stays (keys and caches may be read there), and only W&B's and matplotlib's own
    files go to that folder.
    """
    if not _has_name():
        os.environ["USER"] = f"uid{os.getuid()}"
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_private_folder())
        return
    if not os.access(home, os.W_OK | os.X_OK):
        folder = _private_folder()
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))


def _has_name() -> bool:
    try:
        return bool(getpass.getuser())
    except (KeyError, OSError):
        return False


def _private_folder() -> Path:
    """The same for every process of this user, unless another user has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"cpt_residual-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid():
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="cpt_residual-"))


def wants_direct_io() -> bool:
    """False where CPT_RESIDUAL_DIRECT_IO is 0: large weight files go through the page cache."""
    return os.environ.get("CPT_RESIDUAL_DIRECT_IO", "1") != "0"


def wandb_variables() -> dict[str, str]:
    """All variables that W&B reads."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


@contextlib.contextmanager
def without_wandb_service() -> Generator[None]:
    """Inside, W&B starts a service process of its own: one that another process has started, and
    named in WANDB_SERVICE, may be gone or go. No other variable is restored: this runs in a thread
    that may be left behind and end at any time."""
    before = os.environ.pop("WANDB_SERVICE", None)
    try:
        yield
    finally:
        os.environ.pop("WANDB_SERVICE", None)
        if before is not None:
            os.environ["WANDB_SERVICE"] = before


def child_environment(*, threads: int) -> dict[str, str]:
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
    _set_maths_defaults(child)
    return child


def work_in_one_thread() -> None:
    """In a process that is one of many: tokenizers encode in the thread that calls them, and the
    allocator gives large blocks back, where its own rule keeps the largest it ever had."""
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            library.mallopt(option, 8 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


@contextlib.contextmanager
def preserved_environment() -> Generator[None]:
    """Undo every change of `os.environ` made inside (accelerate and Trainer set variables)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
