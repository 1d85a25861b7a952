"""Run a graph of jobs on worker processes, in the order and on the slots of `Schedule`.

A worker imports the heavy libraries once and then builds one job after another, so a graph of
forty small stages pays for two imports of torch and not for forty. Guarantees:

* a job that holds GPUs has a process that sees these GPUs only and ends with the job, which gives
  their memory back; the others see none of the GPUs that are given out;
* a failed job blocks what depends on it and nothing else, except that a full disk blocks all;
* a job that a process outside does already waits, without a worker, until that process ends;
* workers die with their parent, also when it is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from cpt_residual.errors import BusyError, CptResidualError, DiskSpaceError, WorkerError
from cpt_residual.launch.endings import MEMORY_HINT, end_with_parent, how_it_ended
from cpt_residual.launch.environment import show_gpus
from cpt_residual.launch.schedule import Job, Machine, Schedule

Report = Callable[[int, int, str], None]
Work = Callable[[Any, Report], Any]
"""work(payload, report) -> result; importable by name, run in a worker process."""

_PROGRESS_INTERVAL_SECONDS = 0.2
_POLL_SECONDS = 1.0
_WORKER_GRACE_SECONDS = 20.0
_TERMINATED = 128 + signal.SIGTERM
_GRACE_SECONDS = 600.0  # a training writes a checkpoint first, which takes minutes when it is large


Holder = Callable[[Job], str | None]
"""holder(job) -> the process outside this pool that does the job right now, or None."""


def _nobody(job: Job) -> str | None:
    del job
    return None


@dataclass(frozen=True)
class Event:
    """What happened to a job. `blocked`: a job it needs has failed. `waiting`: `holder` does it."""

    kind: Literal["start", "progress", "done", "failed", "blocked", "waiting"]
    job: str
    holder: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    result: Any = None
    error: CptResidualError | None = None


OnEvent = Callable[[Event], None]


def run_jobs(
    jobs: Mapping[str, Job],
    work: Work,
    *,
    machine: Machine,
    log: Path,
    on_event: OnEvent,
    holder: Holder = _nobody,
) -> bool:
    """Run all jobs; True when every one succeeded. What libraries print goes to `log`.

    A job with a `holder` is not started; it is asked again every second. So is one whose work
    raises BusyError, which means that a process outside was faster by a moment.
    `KeyboardInterrupt` stops the workers (SIGTERM, then SIGKILL after ten minutes or at a second
    interrupt) and is raised again."""
    held = _Held(holder, on_event)
    pool = _Pool(work, log=log, on_event=on_event, schedule=Schedule(jobs, machine), held=held)
    try:
        return pool.run()
    finally:
        pool.stop()


class _Held:
    """Jobs that a process outside does: asked for at most once a second, told when it changes."""

    def __init__(self, holder: Holder, on_event: OnEvent) -> None:
        self._holder, self._on_event = holder, on_event
        self._told: dict[str, str] = {}
        self._ask_again: dict[str, float] = {}

    def holds(self, job: Job) -> bool:
        now = time.monotonic()
        if now < self._ask_again.get(job.name, now):
            return True
        who = self._holder(job)
        if who is None:
            self._ask_again.pop(job.name, None)
            return False
        self._ask_again[job.name] = now + _POLL_SECONDS
        if self._told.get(job.name) != who:
            self._told[job.name] = who
            self._on_event(Event("waiting", job.name, holder=who))
        return True


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    keeps_gpus: bool = False
    job: Job | None = field(default=None)
    begun: bool = False
    """Whether it has said that it began its job."""
    num_done: int = 0


class _Pool:
    def __init__(
        self, work: Work, *, log: Path, on_event: OnEvent, schedule: Schedule, held: _Held
    ) -> None:
        self._work, self._log = work, log
        self._on_event, self._schedule, self._held = on_event, schedule, held
        self._workers: list[_Worker] = []

    def run(self) -> bool:
        while not self._schedule.is_over:
            for job, grant in self._schedule.starts(self._held.holds):
                self._hand_over(job, grant.gpus)
                self._on_event(Event("start", job.name))
            self._listen()
        return not self._schedule.failed

    def _hand_over(self, job: Job, gpus: tuple[str, ...]) -> None:
        """Give the job to an idle worker, else to a new one; one that holds GPUs always to a new
        one. An idle worker that was killed from outside had nothing to lose: it is replaced."""
        for idle in [worker for worker in self._workers if worker.job is None and not gpus]:
            if idle.process.is_alive() and _sent(idle, job.payload):
                idle.job = job
                return
            self._retire(idle)
        worker = self._spawn(gpus)
        worker.job = job
        _sent(worker, job.payload)  # of one that is gone already, `_listen` hears

    def _spawn(self, gpus: tuple[str, ...]) -> _Worker:
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        shown = gpus if self._schedule.machine.gpus else None
        arguments = (self._work, theirs, self._log, shown)
        process = context.Process(target=_serve, args=arguments, daemon=False)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, keeps_gpus=bool(gpus))
        self._workers.append(worker)
        return worker

    def _listen(self) -> None:
        busy = {worker.pipe: worker for worker in self._workers if worker.job}
        for pipe in wait(list(busy), timeout=_POLL_SECONDS):
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):  # it is gone, perhaps in the middle of an answer
                if worker.job and worker.num_done and not worker.begun:
                    self._retire(worker)  # it was killed when idle, and the job not yet begun
                    self._hand_over(worker.job, ())
                    continue
                kind, value = "failed", self._bury(worker)
            self._handle(worker, kind, value)

    def _handle(self, worker: _Worker, kind: str, value: Any) -> None:
        job = worker.job
        assert job is not None
        if kind == "begun":
            worker.begun = True
            return
        if kind == "progress":
            done, total, unit = value
            self._on_event(Event("progress", job.name, done=done, total=total, unit=unit))
            return
        worker.job, worker.begun, worker.num_done = None, False, worker.num_done + 1
        if worker.keeps_gpus and worker in self._workers:
            self._retire(worker)  # before others get its GPUs
        if kind == "done":
            self._schedule.finish(job.name)
            self._on_event(Event("done", job.name, result=value))
            return
        if isinstance(value, BusyError):
            self._schedule.put_back(job.name)
            self._held.holds(job)  # tells who, and leaves it alone for a moment
            return
        full = isinstance(value, DiskSpaceError)  # what starts now would meet it too
        self._on_event(Event("failed", job.name, error=value))
        for blocked in self._schedule.fail(job.name, all_others=full):
            self._on_event(Event("blocked", blocked.name))

    def _bury(self, worker: _Worker) -> CptResidualError:
        self._retire(worker)
        code = worker.process.exitcode or 0
        if code == _TERMINATED:
            code = -signal.SIGTERM
        name = worker.job.name if worker.job else "?"
        return WorkerError(
            f"the process that built {name} {how_it_ended(code)}",
            problems=[f"what it printed: {self._log}"],
            remedy=f"Nothing was published. {MEMORY_HINT}: lower launch.micro_batch_rows or "
            "launch.cores, then run the same command again; it resumes from the last checkpoint.",
        )

    def _retire(self, worker: _Worker) -> None:
        worker.pipe.close()  # an idle worker ends at end of file
        worker.process.join(_WORKER_GRACE_SECONDS)
        worker.process.kill()  # a thread of a library may keep it; harmless to one that has ended
        worker.process.join()
        self._workers.remove(worker)

    def stop(self) -> None:
        """Close idle workers, terminate busy ones, kill what has not ended after the grace."""
        for worker in self._workers:
            worker.pipe.close()  # an idle worker ends at end of file
            if worker.job:
                worker.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # also when the user interrupts the wait
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
            self._workers.clear()


def _sent(worker: _Worker, payload: Any) -> bool:
    """Whether the worker still listens."""
    try:
        worker.pipe.send(payload)
    except OSError:  # of the pipe: payloads are values and pickle without files
        return False
    return True


def _serve(work: Work, pipe: Connection, log: Path, gpus: tuple[str, ...] | None) -> None:
    """Main loop of a worker process. `gpus`: all that it may see; None leaves it as it is."""
    _print_to(log)
    if gpus is not None:
        show_gpus(gpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent()
    while True:
        try:
            payload = pipe.recv()
        except (EOFError, OSError):
            return
        reply: tuple[str, Any]
        try:
            pipe.send(("begun", None))
            reply = ("done", work(payload, _Reporter(pipe)))
        except CptResidualError as error:
            reply = ("failed", error)
        except Exception as error:  # noqa: BLE001  the outer edge: told to the parent in full
            reply = ("failed", _unexpected(error))
        with contextlib.suppress(BrokenPipeError):
            pipe.send(reply)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM: end as at the end of a program, which gives back semaphores and child processes;
    by force when that takes long. Trainings have a handler of their own and save first."""
    del number, frame
    force = threading.Timer(_WORKER_GRACE_SECONDS, os._exit, [_TERMINATED])
    force.daemon = True
    force.start()
    raise SystemExit(_TERMINATED)


def _print_to(log: Path) -> None:
    """Send everything that this process and its children print to the end of `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def _unexpected(error: Exception) -> WorkerError:
    return WorkerError(
        f"unexpected {type(error).__name__}: {error}",
        problems=traceback.format_exc().splitlines(),
        remedy="This is a defect of cpt_residual: please report it with the lines above.",
    )


class _Reporter:
    """Sends progress to the parent, at most a few times a second."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last = 0.0

    def __call__(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self._last >= _PROGRESS_INTERVAL_SECONDS or done >= total:
            self._last = now
            with contextlib.suppress(BrokenPipeError):
                self._pipe.send(("progress", (done, total, unit)))
