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

_START = "from cpt_residual.launch.crew_member import serve; serve({handles}, {parent})"

_ENVIRONMENT = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
}
"""Libraries in Rust, such as tokenizers, work in the thread that calls them. glibc gives memory
back, where its own rule keeps as much as the largest piece of work ever took."""


class Crew(Generic[Piece, Result]):
    """`num_workers` threads in as few processes of at most `threads_per_process` as that takes.
    Each process calls `make(*arguments)` once, and its threads that result for each piece of work.

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
        threads_per_process: int = 1,
    ) -> None:
        assert num_workers > 0, "a crew needs a worker"
        assert threads_per_process > 0, "a process needs a thread"
        self._order = (make, arguments)
        self._sizes = _even_sizes(num_workers, at_most=threads_per_process)
        self._threads = ThreadPoolExecutor(num_workers)  # each waits for one of the others
        self._members: list[_Member] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
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
        worker = self._worker()
        try:
            return worker.ask(piece)
        finally:
            self._idle.put(worker)

    def _worker(self) -> _Worker:
        """An idle one: there are as many as threads that ask for one."""
        with self._lock:
            if self._closed:
                raise WorkerError("the crew is closed")
            if self._idle.empty() and len(self._members) < len(self._sizes):
                member = _Member(self._order, self._sizes[len(self._members)])
                self._members.append(member)
                for worker in member.workers:
                    self._idle.put(worker)
        return self._idle.get()


def _even_sizes(num_workers: int, *, at_most: int) -> list[int]:
    """Threads of each process."""
    num_processes = -(-num_workers // at_most)
    return [len(range(first, num_workers, num_processes)) for first in range(num_processes)]


class _Member:
    """One process and its workers."""

    def __init__(self, order: tuple[object, ...], num_workers: int) -> None:
        pairs = [Pipe() for _ in range(num_workers)]
        self._process = _started([theirs for _, theirs in pairs])
        self.workers = [_Worker(self, ours, order) for ours, _ in pairs]
        for _, theirs in pairs:
            theirs.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Give the pipes back, once no thread uses them any more."""
        for worker in self.workers:
            worker.close()

    def ended(self) -> WorkerError:
        """What to raise when the process is gone."""
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return WorkerError(
            f"a process that helps {how}",
            remedy="SIGKILL often means that memory ran out: lower launch.cores, then run the same"
            " command again; what is done is kept.",
        )


class _Worker:
    """A thread of a process, at the other end of a pipe; used by one thread at a time."""

    def __init__(self, member: _Member, pipe: Connection, order: tuple[object, ...]) -> None:
        self._member, self._pipe = member, pipe
        self._order: tuple[object, ...] | None = order

    def ask(self, piece: object) -> Any:
        """The result of a piece of work, or its error."""
        try:
            if self._order is not None:
                self._pipe.send(self._order)
                self._order = None
            self._pipe.send(piece)
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._member.ended() from error
        if kind == "done":
            return value
        if isinstance(value, CptResidualError):
            raise value
        raise WorkerError(
            "unexpected error in a process that helps",
            problems=str(value).splitlines(),
            remedy="This is a defect of cpt_residual: please report it with the lines above.",
        )

    def close(self) -> None:
        """Give the pipe back."""
        self._pipe.close()


def _started(pipes: list[Connection]) -> subprocess.Popen[bytes]:
    handles = [pipe.fileno() for pipe in pipes]
    return subprocess.Popen(
        [sys.executable, "-c", _START.format(handles=handles, parent=os.getpid())],
        pass_fds=handles,
        env=child_environment(threads=1, extra=_ENVIRONMENT),
        stdin=subprocess.DEVNULL,
    )
