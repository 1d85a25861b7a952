"""Warm cached functions in a background thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


def begin(*works: Callable[[], object]) -> None:
    """Calls cached functions one after the other in the background, so that their next caller need
    not wait. What one of them raises, that caller meets."""

    def call() -> None:
        for work in works:
            with contextlib.suppress(BaseException):
                work()

    threading.Thread(target=call, daemon=True).start()
