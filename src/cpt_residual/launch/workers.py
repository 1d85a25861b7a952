"""Spawned processes for work that Python cannot do in parallel within one process.

Unlike `pool`, which builds stages that know nothing of each other, they belong to one build and
return values.
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Self, TypeVar

from cpt_residual.errors import ArtifactError, WorkerError
from cpt_residual.launch.endings import MEMORY_HINT, end_with_parent, how_it_ended
from cpt_residual.launch.environment import work_in_one_thread

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_MADE: list[Callable[[Any], Any]] = []
"""Of a worker process: what its initializer made."""


class Workers(Generic[Piece, Result]):
    """Up to `num_workers` processes named `name`. Each calls `make(*arguments)` once, and the
    result for every piece of work.

    A context manager: at its end what has not begun is cancelled and what is at work is waited for.
    The processes end with this one too, however it dies. `make` is importable by name; arguments,
    pieces and results pickle.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Callable[[Piece], Result]],
        arguments: tuple[object, ...],
        *,
        num_workers: int,
    ) -> None:
        self._name = name
        self._processes: dict[str, BaseProcess] = {}
        self._executor = ProcessPoolExecutor(
            num_workers, mp.get_context("spawn"), _prepare, (make, arguments)
        )

    def submit(self, piece: Piece) -> Future[Result]:
        """Hand in a piece of work."""
        future = self._executor.submit(_work, piece)
        self._processes |= {child.name: child for child in mp.active_children()}
        return future

    def result(self, future: Future[Result]) -> Result:
        """What came of it; raises the error of the work (ArtifactError for one of the operating
        system), or WorkerError when a process died."""
        try:
            return future.result()
        except OSError as error:
            raise ArtifactError(
                f"a {self._name} could not read or write a file",
                problems=[f"{error.filename or 'file not known'}: {error.strerror}"],
                remedy="Correct that (disk space, limits, permissions), then run the same command"
                " again; what is done is kept.",
            ) from error
        except BrokenProcessPool as error:
            self._executor.shutdown()
            raise WorkerError(
                f"{self._name} {self._how_one_ended()}",
                remedy=f"{MEMORY_HINT}: lower launch.cores, then run the same"
                " command again; what is done is kept.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _how_one_ended(self) -> str:
        """Of the process that died first: the executor then ends the others by SIGTERM."""
        codes = [child.exitcode or 0 for child in self._processes.values()]
        return how_it_ended(next((c for c in codes if c not in (0, -signal.SIGTERM)), min(codes)))


def _prepare(make: Callable[..., Callable[[Any], Any]], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    end_with_parent()
    work_in_one_thread()
    _MADE.append(make(*arguments))
    gc.freeze()  # what lives as long as the process need not be looked through


def _work(piece: Any) -> Any:
    return _MADE[0](piece)
