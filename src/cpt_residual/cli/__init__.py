"""The stand-alone command, `cpt-residual`, which is `python -m cpt_residual.cli`."""

from __future__ import annotations

import atexit
import gc
import signal

_NUM_NEW_OBJECTS = 200_000
"""Python's own, 700, looks again at every class and every token of a vocabulary: 0.05 s."""


def main() -> None:
    """Entry point; ends the process with the exit status."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # Ctrl-C while modules load needs no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(_NUM_NEW_OBJECTS)
    atexit.register(gc.freeze)  # the end of the process need not search what it frees: 0.2 s
    from cpt_residual.cli import app

    signal.signal(signal.SIGINT, handler)
    app.main()
