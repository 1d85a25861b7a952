"""A few child processes that do one kind of work in parallel.

For work that Python cannot do in parallel within one process. Unlike `pool`, which builds stages
that know nothing of each other, a crew belongs to one build and returns values.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from cpt_residual.errors import CptResidualError, WorkerError
from cpt_residual.launch.environment import child_environment

__all__ = ["Crew"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_START = "from cpt_residual.launch.crew_member import serve; serve({handle}, {parent})"


class Crew(Generic[Piece, Result]):
    """`num_workers` processes of `threads` threads; each calls `make(*arguments)` once, and its
    result for each piece of work.

    A context manager. `make` is importable by name and all arguments pickle. Processes start with
    the first pieces, end with the context and with this process, however it ends. Pieces are begun
    in the order in which they are handed in. An error of the user's to mend is raised as it is, one
    of the operating system as ArtifactError with its file, anything else as WorkerError.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Piece], Result]],
        *arguments: object,
        num_workers: int,
        threads: int = 1,
    ) -> None:
        assert num_workers > 0, "a crew needs a worker"
        self._order = (make, arguments)
        self._num_workers = num_workers
        self._num_threads = threads
        self._threads = ThreadPoolExecutor(num_workers)  # each waits for one process
        self._members: list[_Member] = []
        self._idle: SimpleQueue[_Member] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, piece: Piece) -> Future[Result]:
        """Hand in a piece of work."""
        return self._threads.submit(self._do, piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave what is still at work undone."""
        with self._lock:
            self._closed = True
            for member in self._members:
                member.kill()
        self._threads.shutdown(cancel_futures=True)
        for member in self._members:
            member.close()

    def _do(self, piece: Piece) -> Result:
        member = self._member()
        try:
            return member.ask(piece)
        finally:
            self._idle.put(member)

    def _member(self) -> _Member:
        """An idle process: there are as many as threads that ask for one."""
        with self._lock:
            if self._closed:
                raise WorkerError("the crew is closed")
            if self._idle.empty() and len(self._members) < self._num_workers:
                self._members.append(member := _Member(self._order, self._num_threads))
                return member
        return self._idle.get()


class _Member:
    """One process; used by one thread at a time."""

    def __init__(self, order: tuple[object, ...], threads: int) -> None:
        self._order: tuple[object, ...] | None = order
        self._pipe, theirs = Pipe()
        self._process = _started(theirs, threads)
        theirs.close()

    def ask(self, piece: object) -> Any:
        """The result of a piece of work, or its error."""
        try:
            if self._order is not None:
                self._pipe.send(self._order)
                self._order = None
            self._pipe.send(piece)
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if kind == "done":
            return value
        if isinstance(value, CptResidualError):
            raise value
        raise WorkerError(
            "unexpected error in a process that helps",
            problems=str(value).splitlines(),
            remedy="This is a defect of cpt_residual: please report it with the lines above.",
        )

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Give the pipe back, once no thread uses it any more."""
        self._pipe.close()

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return WorkerError(
            f"a process that helps {how}",
            remedy="SIGKILL often means that memory ran out: lower launch.cores, then run the same"
            " command again; what is done is kept.",
        )


def _started(pipe: Connection, threads: int) -> subprocess.Popen[bytes]:
    command = _START.format(handle=pipe.fileno(), parent=os.getpid())
    return subprocess.Popen(
        [sys.executable, "-c", command],
        pass_fds=[pipe.fileno()],
        env=child_environment(threads=threads, extra=_rust_threads(threads)),
        stdin=subprocess.DEVNULL,
    )


def _rust_threads(threads: int) -> dict[str, str]:
    """What tells libraries in Rust, such as tokenizers, how many threads to use."""
    parallel = "true" if threads > 1 else "false"
    return {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": parallel}
