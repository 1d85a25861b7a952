"""What a process of a crew runs. Only the standard library: a member starts in no time.

The command that starts it is in `crew`; both sides speak through one pipe.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["serve"]

_POLL_SECONDS = 0.5


def serve(handle: int, parent: int) -> None:
    """Receive how to make the work, then answer every piece of work until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe = Connection(handle)
    work: Callable[[Any], Any] | None = None
    try:
        order = pipe.recv_bytes()
        while True:
            piece = pipe.recv_bytes()
            try:
                work = work or _made(order)
                reply = ("done", work(pickle.loads(piece)))  # noqa: S301  from the parent
            except Exception as error:  # noqa: BLE001  the outer edge: told to the parent in full
                reply = ("failed", _portable(error))
            pipe.send(reply)
    except (EOFError, OSError):
        return  # the parent has closed its end, or is gone


def _made(order: bytes) -> Callable[[Any], Any]:
    make, arguments = pickle.loads(order)  # noqa: S301  from the parent
    return make(*arguments)


def _portable(error: Exception) -> Exception | str:
    """Errors with fields of their own pickle; of others the traceback is told."""
    from cpt_residual.errors import ArtifactError, CptResidualError

    if isinstance(error, CptResidualError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return ArtifactError(
            "a process that helps could not read or write a file",
            problems=[f"{error.filename or 'file not known'}: {error.strerror}"],
            remedy="Mend that (room on the disk, limits, rights), then run the same command again;"
            " what is done is kept.",
        )
    return traceback.format_exc()


def _end_with(parent: int) -> None:
    """A member outlives its parent, however that died, by half a second at most."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
