"""What a process of a crew runs. Only the standard library: a member starts in no time.

The command that starts it is in `crew`; both sides speak through a pipe for each thread.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

_POLL_SECONDS = 0.5


def serve(handles: Sequence[int], parent: int, module: str) -> None:
    """Import `module`, and answer what comes through every pipe, in a thread each, until the other
    end closes them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    work = _Work()
    threads = [threading.Thread(target=_answer, args=(Connection(h), work)) for h in handles]
    for thread in threads:
        thread.start()
    with suppress(ImportError):  # whoever needs it says so
        importlib.import_module(module)
    for thread in threads:
        thread.join()


def _answer(pipe: Connection, work: _Work) -> None:
    """Receive how to make the work, then answer every piece of work."""
    try:
        order = pipe.recv_bytes()
        while True:
            piece = pipe.recv_bytes()
            try:
                do = work.made(order)
                reply = ("done", do(pickle.loads(piece)))  # noqa: S301  from the parent
            except Exception as error:  # noqa: BLE001  the outer edge: told to the parent in full
                reply = ("failed", _portable(error))
            pipe.send(reply)
    except (EOFError, OSError):
        return  # the parent has closed its end, or is gone


class _Work:
    """What all threads call; made once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._do: Callable[[Any], Any] | None = None

    def made(self, order: bytes) -> Callable[[Any], Any]:
        with self._lock:
            do = self._do
            if do is None:
                make, arguments = pickle.loads(order)  # noqa: S301  from the parent
                do = self._do = make(*arguments)
                gc.freeze()  # what lives as long as the process need not be looked through
            return do


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
