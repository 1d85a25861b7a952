"""A run from outside: what it refuses, what it says when something fails, how it ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cpt_residual import run
from cpt_residual.config.compose import compose
from cpt_residual.config.schema import Experiment
from cpt_residual.core.build import BuildOutcome
from cpt_residual.core.stage import ArtifactRef
from cpt_residual.errors import (
    ConfigError,
    CptResidualError,
    DiskSpaceError,
    LaunchError,
    WorkerError,
)
from cpt_residual.launch import environment
from cpt_residual.launch.pool import Event, OnEvent
from cpt_residual.launch.schedule import Job
from cpt_residual.stages import session
from cpt_residual.stages.registry import localised
from cpt_residual.stages.session import Finished, run_experiment
from cpt_residual.stages.sweep import differing

FULL = DiskSpaceError("not enough disk space at /x", remedy="Free some space.")


def experiment(root: Path, *overrides: str) -> Experiment:
    return localised(compose(["+experiment=smoke", f"paths.root={root}", *overrides]))


def play(monkeypatch: pytest.MonkeyPatch, *events: Event, print_to_log: str = "") -> None:
    """Instead of building anything, have these things happen."""

    def run_jobs(
        jobs: Mapping[str, Job], work: object, *, log: Path, on_event: OnEvent, **_: Any
    ) -> bool:
        assert {event.job for event in events} <= set(jobs)
        log.write_text(print_to_log)
        for event in events:
            on_event(event)
        return False

    monkeypatch.setattr(session, "run_jobs", run_jobs)


def outcome(*, skipped: bool) -> BuildOutcome:
    ref = ArtifactRef("world", "world", "f" * 64, "c" * 64, Path("x"), {})
    return BuildOutcome(ref, skipped=skipped, reason="same recipe and inputs", seconds=1.0)


def finish(root: Path) -> tuple[Finished, str, Path]:
    console = Console(file=StringIO(), soft_wrap=True, highlight=False)
    result = run_experiment(experiment(root), console)
    assert isinstance(console.file, StringIO)
    (folder,) = (root / "runs").iterdir()
    return result, console.file.getvalue(), folder


def test_a_full_disk_is_said_once_and_needs_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = Path.open

    def open_but_full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return real_open(Path("/dev/full") if self.name == "log.jsonl" else self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_but_full)
    failures = [Event("failed", name, error=FULL) for name in ("world", "scratch")]
    blocked = [Event("blocked", f"evaluate:{name}") for name in ("base", "instruct", "base_cpt")]
    blocked += [Event("blocked", "geometry"), Event("blocked", "report")]
    play(monkeypatch, *failures, *blocked)
    result, text, _ = finish(tmp_path)
    assert not result.complete
    assert run.exit_status([result]) == DiskSpaceError.exit_code == 2
    assert text.count("Free some space.") == 1
    assert "DiskSpaceError: not enough disk space at /x (as above)" in text
    named = "evaluate:base, evaluate:instruct, evaluate:base_cpt and 2 more"
    assert f"not built because of what failed: 5 stages ({named})" in text
    end = text[text.index("not finished: see the failures above. What was built is kept") :]
    assert "failed: world: not enough disk space at /x\n" in end
    assert "failed: scratch: not enough disk space at /x\n" in end
    assert "workers.log" not in text, "it is empty"


def test_the_log_of_the_workers_is_named_when_it_says_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = WorkerError("the process that built world was killed by SIGKILL")
    play(monkeypatch, Event("failed", "world", error=error), print_to_log="chatter")
    result, text, folder = finish(tmp_path)
    assert run.exit_status([result]) == 1
    assert text.endswith(f"what the stages printed: {folder / 'workers.log'}\n")


def test_waiting_for_another_run_is_shown_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        Event("start", "world"),
        Event("waiting", "world", holder="process 7 on vm since 2026"),
        Event("start", "world"),
        Event("done", "world", result=outcome(skipped=True)),
    ]
    play(monkeypatch, *events)
    _, text, folder = finish(tmp_path)
    assert "waiting world                                built by process 7 on vm since" in text
    assert "skip   world                                same recipe and inputs" in text
    assert "done   world" not in text
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", "waiting", "start", "skip"]
    assert rows[1]["holder"] == "process 7 on vm since 2026"


def test_a_missing_gpu_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "visible_gpus", lambda: 0)
    play(monkeypatch)
    with pytest.raises(LaunchError, match="no GPU is visible"):
        run_experiment(experiment(tmp_path, "launch.device=cuda"), Console(file=StringIO()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([ConfigError("a"), DiskSpaceError("b")], 2),
        ([ConfigError("a"), WorkerError("b")], 1),
        ([WorkerError("b")], 1),
        ([], 1),
    ],
)
def test_the_exit_status_is_that_of_the_errors(
    tmp_path: Path, errors: list[CptResidualError], status: int
) -> None:
    given = experiment(tmp_path)
    done, failed = Finished(given, tmp_path), Finished(given, None, tuple(errors))
    assert run.exit_status([done]) == 0
    assert run.exit_status([done, failed]) == status


def test_sigterm_ends_as_ctrl_c_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "run_experiment", wait)
    assert run.main(["+experiment=smoke", f"paths.root={tmp_path}"]) == 143
    assert capsys.readouterr().err == "terminated: run the same command again to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sweep_names_its_runs_by_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(given: Experiment, console: Console, *, overrides: str) -> Finished:
        if given.launch.device == "cuda":
            raise LaunchError("no GPU is visible")
        return Finished(given, None, (LaunchError("x"),), overrides)

    monkeypatch.setattr(run, "run_experiment", fail)
    both = ["launch.device=cuda,cpu", "recipes.cpt.learning_rate=1.0e-4"]
    assert run.main(["-m", "+experiment=smoke", f"paths.root={tmp_path}", *both]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("── run 1 of 2: launch.device=cuda ──")
    assert lines[1].startswith("── run 2 of 2: launch.device=cpu ──")
    assert lines[2:] == [
        "not finished: smoke (launch.device=cuda)",
        "not finished: smoke (launch.device=cpu)",
    ]


def test_what_differs_in_a_sweep() -> None:
    assert differing([["a=1", "seed=0"], ["a=1", "seed=1"]]) == ["seed=0", "seed=1"]
    assert differing([["a=1", "b=1"]]) == [""]
