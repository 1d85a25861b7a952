"""The worker pool: order, budget, failures, death of workers and of the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.core.lock import describe_holder, hold
from cpt_residual.core.stage import Resources
from cpt_residual.errors import ConfigError, DiskSpaceError, WorkerError
from cpt_residual.launch import pool
from cpt_residual.launch.pool import Event, run_jobs
from cpt_residual.launch.schedule import Job, Machine
from support.processes import wait_for, wait_until_gone

Report = Callable[[int, int, str], None]


def _work(payload: dict[str, object], report: Report) -> object:
    """What the workers of these tests do: `payload["do"]` says it."""
    match payload["do"]:
        case "span":
            started = time.monotonic()
            time.sleep(float(str(payload["seconds"])))
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            return started, time.monotonic(), os.getpid(), shown
        case "progress":
            for done in range(1, 4):
                report(done, 3, "tokens")
            return "ok"
        case "user error":
            raise ConfigError("bad value", problems=["a: 1"], remedy="Fix it.")
        case "full disk":
            raise DiskSpaceError("not enough disk space")
        case "lock":
            with hold(Path(str(payload["path"])), name="lock"):
                return "built"
        case "defect":
            raise KeyError("lost")
        case "kill":
            _kill(payload, report)
        case "print":
            print("library chatter")
            os.system("echo child chatter")
    return None


def _kill(payload: dict[str, object], report: Report) -> None:
    """Signals the process `pid`, or this one, if asked for in the middle of its answer."""
    if payload.get("half"):
        pipe = report._pipe  # type: ignore[attr-defined]
        os.write(pipe.fileno(), (1000).to_bytes(4, "big") + b"begun")
    os.kill(int(str(payload.get("pid") or os.getpid())), int(str(payload.get("signal", 9))))
    time.sleep(float(str(payload.get("wait", 0))))


def _run(
    tmp_path: Path, *jobs: Job, cores: int = 2, gpus: tuple[str, ...] = ()
) -> tuple[bool, list[Event]]:
    events: list[Event] = []
    by_name = {job.name: job for job in jobs}
    log, machine = tmp_path / "workers.log", Machine(cores, gpus)
    complete = run_jobs(by_name, _work, machine=machine, log=log, on_event=events.append)
    return complete, events


def _hold_elsewhere(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that holds the lock `path` for a while; it has it when this returns."""
    code = (
        "import sys, time; from pathlib import Path; from cpt_residual.core.lock import hold\n"
        "with hold(Path(sys.argv[1]), name='x'): print(flush=True); time.sleep(float(sys.argv[2]))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(seconds)], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"\n"
    return other


def _of(events: list[Event], kind: str) -> dict[str, Event]:
    return {event.job: event for event in events if event.kind == kind}


def _span(name: str, *needs: str, cores: int = 1, rank: float = 0.0) -> Job:
    payload = {"do": "span", "seconds": 0.15}
    return Job(name, payload, frozenset(needs), Resources(cores=cores), seconds=rank)


def test_dependencies_end_before_their_users_start_and_workers_are_reused(tmp_path: Path) -> None:
    complete, events = _run(tmp_path, _span("c", "a", "b"), _span("a"), _span("b"), _span("d", "c"))
    assert complete
    spans = {name: event.result for name, event in _of(events, "done").items()}
    assert max(spans["a"][1], spans["b"][1]) <= spans["c"][0]
    assert spans["c"][1] <= spans["d"][0]
    assert len({span[2] for span in spans.values()}) <= 2


def test_the_longest_remaining_path_starts_first(tmp_path: Path) -> None:
    jobs = [_span("short", rank=1), _span("long", rank=5), _span("head", rank=0.5)]
    jobs.append(_span("tail", "head", rank=9))
    _, events = _run(tmp_path, *jobs, cores=1)
    assert [e.job for e in events if e.kind == "start"] == ["head", "tail", "long", "short"]


def test_a_failure_blocks_only_what_depends_on_it(tmp_path: Path) -> None:
    jobs = [
        Job("bad", {"do": "user error"}),
        Job("after", {"do": "progress"}, frozenset({"bad"})),
        Job("later", {"do": "progress"}, frozenset({"after"})),
        Job("free", {"do": "progress"}),
    ]
    complete, events = _run(tmp_path, *jobs)
    assert not complete
    assert set(_of(events, "blocked")) == {"after", "later"}
    assert set(_of(events, "done")) == {"free"}
    error = _of(events, "failed")["bad"].error
    assert isinstance(error, ConfigError)
    assert str(error) == "bad value\n  a: 1\nFix it."
    assert _of(events, "progress")["free"].done == 3


def test_a_defect_is_reported_with_its_traceback_and_the_worker_lives_on(tmp_path: Path) -> None:
    jobs = [Job("defect", {"do": "defect"}, seconds=9), Job("next", {"do": "progress"})]
    _, events = _run(tmp_path, *jobs, cores=1)
    error = _of(events, "failed")["defect"].error
    assert isinstance(error, WorkerError)
    assert "KeyError" in str(error)
    assert "_work" in str(error)
    assert set(_of(events, "done")) == {"next"}


def test_a_killed_worker_fails_its_job_and_is_replaced(tmp_path: Path) -> None:
    jobs = [Job("die", {"do": "kill"}, seconds=9), Job("next", {"do": "progress"})]
    complete, events = _run(tmp_path, *jobs, cores=1)
    assert not complete
    assert "SIGKILL" in str(_of(events, "failed")["die"].error)
    assert set(_of(events, "done")) == {"next"}


@pytest.mark.parametrize("wait", [0.0, 0.4])
def test_an_idle_worker_that_is_killed_is_replaced(tmp_path: Path, wait: float) -> None:
    """Both workers do a job; then one of them, idle, is killed while the other works."""
    events: list[Event] = []
    payload: dict[str, object] = {"do": "kill", "pid": 0, "signal": signal.SIGKILL, "wait": wait}
    jobs = [
        _span("a"),
        Job("b", {"do": "span", "seconds": 0.6}),
        Job("kill", payload, frozenset({"a", "b"}), seconds=9),
        _span("c", "kill"),
        _span("d", "kill"),
    ]

    def on_event(event: Event) -> None:
        events.append(event)
        if event.kind == "done" and event.job in ("a", "b"):
            ends[event.job] = event.result[2]
            # the first idle worker gets `kill`: it kills the other one
            payload["pid"] = ends.get("b", 0)

    ends: dict[str, int] = {}
    complete = run_jobs(
        {job.name: job for job in jobs},
        _work,
        machine=Machine(2),
        log=tmp_path / "log",
        on_event=on_event,
    )
    assert not _of(events, "failed")
    assert complete
    pids = {name: event.result[2] for name, event in _of(events, "done").items() if event.result}
    assert ends["b"] not in {pids["c"], pids["d"]}


def test_a_worker_killed_in_the_middle_of_its_answer_is_named(tmp_path: Path) -> None:
    jobs = [Job("half", {"do": "kill", "half": True}, seconds=9), Job("next", {"do": "progress"})]
    complete, events = _run(tmp_path, *jobs, cores=1)
    assert not complete
    assert "that built half was killed by SIGKILL" in str(_of(events, "failed")["half"].error)
    assert set(_of(events, "done")) == {"next"}


def test_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    number = signal.SIGRTMIN + 1
    die = Job("die", {"do": "kill", "signal": number})
    _, events = _run(tmp_path, die)
    assert f"was killed by signal {int(number)}" in str(_of(events, "failed")["die"].error)


def test_what_workers_and_their_children_print_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, Job("print", {"do": "print"}))
    assert capfd.readouterr().out == ""
    text = (tmp_path / "workers.log").read_text()
    assert "library chatter" in text
    assert "child chatter" in text


PARENT = """
import multiprocessing, os, time
from pathlib import Path
from cpt_residual.launch.pool import run_jobs
from cpt_residual.launch.schedule import Job, Machine
from cpt_residual.launch.stopping import TerminatedError, terminable

def work(payload, report):
    global lock
    lock = multiprocessing.get_context("spawn").RLock()  # as tqdm does
    Path(payload).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    here = Path(__file__).parent
    jobs, log = {"sleep": Job("sleep", str(here / "pid"))}, here / "log"
    try:
        with terminable():
            run_jobs(jobs, work, machine=Machine(1), log=log, on_event=lambda e: None)
    except TerminatedError:
        print("terminated")
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    """A parent that is terminated hears no word of the resource tracker, which speaks of
    semaphores that are left over."""
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = int(wait_for(tmp_path / "pid"))
    parent.send_signal(how)
    out, errors = parent.communicate(timeout=20)
    wait_until_gone(worker)
    if how == signal.SIGTERM:
        assert (out, errors, parent.returncode) == ("terminated\n", "", 0)


_DEVICES = ("3", "GPU-5a1c", "MIG-77", "0")


def _on_gpus(name: str, number: int, *needs: str) -> Job:
    payload = {"do": "span", "seconds": 0.3}
    return Job(name, payload, frozenset(needs), Resources(gpus_per_node=number))


def test_every_gpu_job_sees_its_own_gpus_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Four evaluations on four devices beside a job of the CPU, then a training on all four."""
    single = [_on_gpus(f"evaluate{n}", 1) for n in range(4)]
    training = _on_gpus("train", 4, *(job.name for job in single))
    jobs = [*single, training, _span("cpu"), _span("after", "train")]
    complete, events = _run(tmp_path, *jobs, cores=5, gpus=_DEVICES)
    assert complete
    spans = {name: event.result for name, event in _of(events, "done").items()}
    shown = {name: span[3] for name, span in spans.items()}
    assert sorted(shown[job.name] for job in single) == sorted(_DEVICES)
    assert shown["train"] == ",".join(_DEVICES)
    assert shown["cpu"] == shown["after"] == "", "they see no GPU that somebody may be given"
    kinds = [event.kind for event in events if event.job in {job.name for job in single}]
    assert kinds[:4] == ["start"] * 4, "all at once"
    own = {spans[name][2] for name in shown if shown[name]}
    assert len(own) == 5
    assert spans["after"][2] not in own


def _linger(payload: object, report: Report) -> int:
    del payload, report
    threading.Thread(target=time.sleep, args=(60,)).start()
    return os.getpid()


def test_a_process_that_does_not_end_after_its_job_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_WORKER_GRACE_SECONDS", 0.1)
    jobs = {"a": Job("a", resources=Resources(gpus_per_node=1))}
    log, events = tmp_path / "workers.log", list[Event]()
    begun = time.monotonic()
    assert run_jobs(jobs, _linger, machine=Machine(2, _DEVICES), log=log, on_event=events.append)
    assert time.monotonic() - begun < 50
    wait_until_gone(_of(events, "done")["a"].result, seconds=1)


def test_without_gpus_to_give_out_a_worker_sees_what_its_parent_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    _, events = _run(tmp_path, _on_gpus("a", 1))
    assert _of(events, "done")["a"].result[3] == "1,2"


def _run_with_lock(tmp_path: Path, *, ask: bool) -> list[Event]:
    """Run `lock`, `after` and `free`; `ask`: the pool can see who holds the lock of `lock`."""
    path, events = tmp_path / "x.lock", list[Event]()
    jobs = [
        Job("lock", {"do": "lock", "path": str(path)}, seconds=9),
        Job("after", {"do": "progress"}, frozenset({"lock"})),
        Job("free", {"do": "progress"}),
    ]

    def holder(job: Job) -> str | None:
        return describe_holder(path) if job.name == "lock" and (ask or events) else None

    assert run_jobs(
        {job.name: job for job in jobs},
        _work,
        machine=Machine(1),
        log=tmp_path / "log",
        on_event=events.append,
        holder=holder,
    )
    return events


@pytest.mark.parametrize("ask", [True, False])
def test_what_another_process_does_is_waited_for_and_holds_up_nothing_else(
    tmp_path: Path, ask: bool
) -> None:
    other = _hold_elsewhere(tmp_path / "x.lock", 60)
    threading.Timer(4.0, other.kill).start()  # it crashes: the kernel gives the lock back
    events = _run_with_lock(tmp_path, ask=ask)
    other.communicate()
    order = [(event.kind, event.job) for event in events if event.kind != "progress"]
    assert _of(events, "waiting")["lock"].holder.startswith(f"process {other.pid} on ")
    assert order.count(("waiting", "lock")) == 1
    assert order.index(("waiting", "lock")) < order.index(("done", "free"))
    assert order[-4:] == [
        ("start", "lock"),
        ("done", "lock"),
        ("start", "after"),
        ("done", "after"),
    ]
    assert not _of(events, "failed")


def test_nothing_more_starts_once_the_disk_is_full(tmp_path: Path) -> None:
    jobs = [Job("bad", {"do": "full disk"}, seconds=9), Job("free", {"do": "progress"})]
    complete, events = _run(tmp_path, *jobs, cores=1)
    assert not complete
    assert [event.kind for event in events] == ["start", "failed", "blocked"]
