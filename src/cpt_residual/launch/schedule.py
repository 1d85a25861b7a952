"""The scheduler: which job starts when, on which cores and GPUs. The pool follows it with real
processes, the plan with expected times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cpt_residual.core.stage import ONE_CORE, Resources


@dataclass(frozen=True)
class Machine:
    """What jobs share. gpus: one slot each, named as an entry of CUDA_VISIBLE_DEVICES."""

    cores: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`8 GPUs and 64 cores`."""
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        gpus = f"{len(self.gpus)} GPU{'s' if len(self.gpus) > 1 else ''}"
        return f"{gpus} and {cores}" if self.gpus else cores


@dataclass(frozen=True)
class Job:
    """One unit of work. `seconds`: expected wall time, which orders the queue."""

    name: str
    payload: Any = None
    needs: frozenset[str] = frozenset()
    resources: Resources = ONE_CORE
    seconds: float = 0.0


@dataclass(frozen=True)
class Grant:
    """What a job holds while it runs."""

    cores: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """When a job is expected to run, in seconds from the start."""

    start: float
    end: float
    grant: Grant


def _never(job: Job) -> bool:
    del job
    return False


@dataclass
class Schedule:
    """State of a graph of jobs on a machine. Guarantees:

    * a job starts only when all its needs are done, on cores and GPUs that no other job holds; one
      that wants more than the machine has gets all of it;
    * jobs on the longest remaining path start first; a job that has to wait for GPUs is overtaken
      by jobs that need none, one that has to wait for cores by no job, so that none starves.
    """

    jobs: Mapping[str, Job]
    machine: Machine
    waiting: dict[str, Job] = field(init=False)
    running: dict[str, Grant] = field(init=False, default_factory=dict[str, Grant])
    done: set[str] = field(init=False, default_factory=set[str])
    failed: set[str] = field(init=False, default_factory=set[str])

    def __post_init__(self) -> None:
        self.waiting = dict(self.jobs)
        self._rank = _longest_paths(self.jobs)

    @property
    def is_over(self) -> bool:
        return not self.waiting and not self.running

    def starts(self, is_held: Callable[[Job], bool] = _never) -> Iterator[tuple[Job, Grant]]:
        """Jobs that start now, with what they hold from now on. `is_held`: done by others."""
        ready = [job for job in self.waiting.values() if job.needs <= self.done]
        no_more_gpus = False
        for job in sorted(ready, key=lambda job: (-self._rank[job.name], job.name)):
            if is_held(job):
                continue
            wanted = job.resources
            cores = min(wanted.nodes * wanted.cores, self.machine.cores)
            gpus = min(wanted.nodes * wanted.gpus_per_node, len(self.machine.gpus))
            if gpus and (no_more_gpus or gpus > len(self._free_gpus())):
                no_more_gpus = True
                continue
            if cores > self.machine.cores - sum(each.cores for each in self.running.values()):
                return
            grant = Grant(cores, self._free_gpus()[:gpus])
            del self.waiting[job.name]
            self.running[job.name] = grant
            yield job, grant

    def finish(self, name: str) -> None:
        del self.running[name]
        self.done.add(name)

    def put_back(self, name: str) -> None:
        """The job did not begin after all."""
        del self.running[name]
        self.waiting[name] = self.jobs[name]

    def fail(self, name: str, *, all_others: bool = False) -> list[Job]:
        """The jobs that can no longer run, or all that have not started; they leave the queue."""
        del self.running[name]
        self.failed.add(name)
        lost: list[Job] = []
        while hit := [
            job for job in self.waiting.values() if all_others or job.needs & self.failed
        ]:
            for job in hit:
                lost.append(self.waiting.pop(job.name))
                self.failed.add(job.name)
        return lost

    def _free_gpus(self) -> tuple[str, ...]:
        taken = {gpu for grant in self.running.values() for gpu in grant.gpus}
        return tuple(gpu for gpu in self.machine.gpus if gpu not in taken)


def simulate(jobs: Mapping[str, Job], machine: Machine) -> dict[str, Span]:
    """When each job would run if all took as long as expected."""
    schedule, now, spans = Schedule(jobs, machine), 0.0, dict[str, Span]()
    while not schedule.is_over:
        for job, grant in schedule.starts():
            spans[job.name] = Span(now, now + job.seconds, grant)
        now = min(spans[name].end for name in schedule.running)
        for name in [name for name in schedule.running if spans[name].end <= now]:
            schedule.finish(name)
    return spans


def wall_seconds(spans: Iterable[Span]) -> float:
    """From the start of the first job to the end of the last."""
    return max((span.end for span in spans), default=0.0)


def _longest_paths(jobs: Mapping[str, Job]) -> dict[str, float]:
    """Seconds from the start of each job to the end of the graph along its longest path."""
    followers: dict[str, list[str]] = {name: [] for name in jobs}
    for job in jobs.values():
        for need in job.needs:
            followers[need].append(job.name)
    rank: dict[str, float] = {}

    def visit(name: str) -> float:
        if name not in rank:
            rank[name] = jobs[name].seconds + max(map(visit, followers[name]), default=0.0)
        return rank[name]

    for name in jobs:
        visit(name)
    return rank
