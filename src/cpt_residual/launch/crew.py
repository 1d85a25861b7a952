"""A few child processes that do one kind of work in parallel.

For work that Python cannot do in parallel within one process. Unlike `pool`, which builds stages
that know nothing of each other, a crew belongs to one build and returns values.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from cpt_residual.errors import CptResidualError, WorkerError
from cpt_residual.launch.endings import MEMORY_HINT, how_it_ended
from cpt_residual.launch.environment import child_environment

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_START = "from cpt_residual.launch.crew_member import serve; serve({handles}, {parent}, {module!r})"

_ENVIRONMENT = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
}
"""Libraries in Rust, such as tokenizers, work in the thread that calls them. glibc gives memory
back, where its own rule keeps as much as the largest piece of work ever took."""


class Crew(Generic[Piece, Result]):
    """`num_workers` threads in as few processes of at most `threads_per_process` as that takes.
    Each process calls `make` once, with what `begin` says, and its threads that result for each
    piece of work.

    A context manager. `make` is importable by name and all arguments pickle. Processes start with
    the context, and import what `make` needs; they end with it and with this process, however it
    ends. Pieces are begun in the order in which they are handed in. An error of the user's to mend
    is raised as it is, one of the operating system as ArtifactError with its file, anything else
    as WorkerError.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Piece], Result]],
        *,
        num_workers: int,
        threads_per_process: int = 1,
    ) -> None:
        assert num_workers > 0, "a crew needs a worker"
        assert threads_per_process > 0, "a process needs a thread"
        self._make = make
        self._sizes = _even_sizes(num_workers, at_most=threads_per_process)
        self._threads = ThreadPoolExecutor(num_workers)  # each waits for one of the others
        self._members: list[_Member] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    def begin(self, *arguments: object) -> None:
        """What `make` gets; once, before any piece of work."""
        order = pickle.dumps((self._make, arguments))
        for member in self._members:
            for worker in member.workers:
                worker.order = order
                self._idle.put(worker)

    def submit(self, piece: Piece) -> Future[Result]:
        """Hand in a piece of work; after `begin`."""
        return self._threads.submit(self._do, piece)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)
            for size in self._sizes:
                self._members.append(_Member(size, self._make.__module__))
            stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave what is still at work undone."""
        for member in self._members:
            member.kill()
        self._threads.shutdown(cancel_futures=True)
        for member in self._members:
            member.close()

    def _do(self, piece: Piece) -> Result:
        worker = self._idle.get()  # there are as many as threads that ask for one
        try:
            return worker.ask(piece)
        finally:
            self._idle.put(worker)


def _even_sizes(num_workers: int, *, at_most: int) -> list[int]:
    """Threads of each process."""
    num_processes = -(-num_workers // at_most)
    return [len(range(first, num_workers, num_processes)) for first in range(num_processes)]


class _Member:
    """One process and its workers."""

    def __init__(self, num_workers: int, module: str) -> None:
        pairs = [Pipe() for _ in range(num_workers)]
        self._process = _started([theirs for _, theirs in pairs], module)
        self.workers = [_Worker(self, ours) for ours, _ in pairs]
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
        return WorkerError(
            f"a process that helps {how_it_ended(self._process.wait())}",
            remedy=f"{MEMORY_HINT}: lower launch.cores, then run the same"
            " command again; what is done is kept.",
        )


class _Worker:
    """A thread of a process, at the other end of a pipe; used by one thread at a time.

    `order`: what it must still be told before any piece of work."""

    def __init__(self, member: _Member, pipe: Connection) -> None:
        self._member, self._pipe = member, pipe
        self.order: bytes | None = None

    def ask(self, piece: object) -> Any:
        """The result of a piece of work, or its error."""
        try:
            if self.order is not None:
                self._pipe.send_bytes(self.order)
                self.order = None
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


def _started(pipes: list[Connection], module: str) -> subprocess.Popen[bytes]:
    handles = [pipe.fileno() for pipe in pipes]
    start = _START.format(handles=handles, parent=os.getpid(), module=module)
    return subprocess.Popen(
        [sys.executable, "-c", start],
        pass_fds=handles,
        env=child_environment(threads=1, extra=_ENVIRONMENT),
        stdin=subprocess.DEVNULL,
    )
