"""SIGTERM of a whole run, as job managers send it, ends like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType

_INTERRUPTED, _TERMINATED = 130, 143


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has arrived. A KeyboardInterrupt, so that everything stops as it does at Ctrl-C."""


@contextlib.contextmanager
def terminable() -> Generator[None]:
    """Raise `TerminatedError` in the main thread at SIGTERM for as long as the block runs.

    Elsewhere than in the main thread, where Python cannot install handlers, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say_stopped(stop: KeyboardInterrupt, *, remedy: str) -> int:
    """Says on stderr what ended the program and how to go on; returns the exit status."""
    terminated = isinstance(stop, TerminatedError)
    with contextlib.suppress(OSError):  # the status counts, also where stderr cannot be written
        sys.stderr.write(f"{'terminated' if terminated else 'interrupted'}: {remedy}\n")
    return _TERMINATED if terminated else _INTERRUPTED


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TerminatedError
