"""How a process ended, in words."""

from __future__ import annotations

import signal

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
