"""How a process ended, in words, and the end of a process whose parent is gone."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from multiprocessing.connection import wait

MEMORY_HINT = "SIGKILL often means that memory ran out"


def signal_name(number: int) -> str:
    """`SIGKILL`; `signal 35` for one without a name, such as a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(code: int) -> str:
    """`was killed by SIGKILL` or `exited with 3`, of an exit code as `subprocess` gives it:
    negative for a signal."""
    return f"was killed by {signal_name(-code)}" if code < 0 else f"exited with {code}"


def end_with_parent() -> None:
    """Watch the process that spawned this one from a thread, and end at once with it, however it
    died."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
