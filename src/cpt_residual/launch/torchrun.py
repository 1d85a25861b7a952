"""Start ranks under torchrun and watch them. Standard library only.

Guarantees: the ranks die when this process dies, also by SIGKILL; SIGTERM, SIGINT and SIGUSR1 of
this process reach every rank once, as SIGTERM; what the ranks print goes to a file.

Run as a module it is the guard in front of torchrun:
`python -m cpt_residual.launch.torchrun PARENT_PID COMMAND...` asks the kernel to be killed with its
parent and then becomes COMMAND.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""End of a job, Ctrl-C, and the warning that SLURM sends before its time limit."""

SHUTDOWN_SECONDS = 600
"""How long torchrun waits after SIGTERM for the ranks to write their checkpoint."""

_KILLED = re.compile(r"^\s*rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: -(\d+) ", re.MULTILINE)
"""Of torchrun's report on a failure."""

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def torchrun_command(
    *,
    module: str,
    arguments: Sequence[str],
    num_processes: int,
    num_nodes: int = 1,
    rendezvous: str | None = None,
) -> list[str]:
    """Arguments that start `num_processes` ranks of `python -m module arguments` on this machine;
    given `rendezvous` (HOST:PORT), on each node of this SLURM job, through `srun`.

    `--standalone` picks a free port, so that several jobs fit on one machine. SIGUSR1 is handled
    by torchrun too: by default it would kill the agent and orphan the ranks."""
    on_each = f"--nodes={num_nodes} --ntasks={num_nodes} --ntasks-per-node=1 --kill-on-bad-exit=1"
    meet = f"--nnodes={num_nodes} --rdzv-backend=c10d --rdzv-id=cpt --rdzv-endpoint={rendezvous}"
    return [
        *(sys.executable, "-m", "cpt_residual.launch.torchrun", str(os.getpid())),
        *(["srun", *on_each.split()] if rendezvous else []),
        *(sys.executable, "-m", "torch.distributed.run"),
        *(meet.split() if rendezvous else ["--standalone"]),
        f"--nproc_per_node={num_processes}",
        "--max_restarts=0",
        f"--signals-to-handle={','.join(each.name for each in STOP_SIGNALS)}",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        "--module",
        module,
        *arguments,
    ]


class StopFlag:
    """Set by the first stop signal; `name` says which."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_requests() -> Generator[StopFlag]:
    """Turn stop signals into a flag for as long as the block runs, then restore the handlers.

    A signal that the caller ignores stays ignored. Outside the main thread, where Python cannot
    install handlers, the flag never rises."""
    flag = StopFlag()

    def raise_flag(number: int, frame: FrameType | None) -> None:
        del frame
        flag.name = signal.Signals(number).name

    before: dict[signal.Signals, object] = {}
    if threading.current_thread() is threading.main_thread():
        for each in STOP_SIGNALS:
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, raise_flag)
    try:
        yield flag
    finally:
        for each, handler in before.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]


def run_ranks(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    on_poll: Callable[[], None],
    flag: StopFlag,
) -> int:
    """Run `command` to its end and return its exit code (negative: the signal that ended it).

    `on_poll` is called a few times a second. When `flag` rises, the ranks get SIGTERM once and
    are waited for. An exception of `on_poll` ends the ranks before it is raised again."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )
        told = False
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                if flag and not told:
                    told = True
                    process.terminate()
                on_poll()
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    on_poll()
    return process.returncode


def last_lines(path: Path, count: int = 25) -> list[str]:
    """The last lines of a log, without the empty ones."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def killed_rank(log: Path) -> tuple[int, int] | None:
    """(rank, signal) of a rank that a signal ended, from torchrun's report in its log.

    The other ranks lose their peer then, and whatever they raise is an echo of that. SIGTERM is
    how torchrun itself ends them. SIGABRT is the last choice: gloo aborts when its peer is gone."""
    if not log.exists():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    found = [(int(rank), int(number)) for rank, number in _KILLED.findall(text)]
    found = [each for each in found if each[1] != signal.SIGTERM]
    return min(found, key=lambda each: (each[1] == signal.SIGABRT, each[0]), default=None)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to send SIGKILL to this process when its parent dies.

    `parent`: the process id that must still be the parent; exits at once when it is not."""
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        os._exit(1)


def _guard(arguments: Sequence[str]) -> None:
    """Become torchrun or srun, bound to the life of the process that started us."""
    die_with_parent(int(arguments[0]))
    os.execvp(arguments[1], list(arguments[1:]))  # noqa: S606 - our own arguments


if __name__ == "__main__":
    _guard(sys.argv[1:])
