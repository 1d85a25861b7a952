"""SIGTERM of a whole run, as job managers send it, ends like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

__all__ = ["TerminatedError", "terminable"]


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


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TerminatedError
