"""What happens after a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from transformers import TrainerControl, TrainerState

from cpt_residual.errors import WorkerError
from cpt_residual.launch.torchrun import StopFlag
from cpt_residual.train.callbacks import CheckpointClock, StepGuard, trace_of


class Recorder:
    def __init__(self) -> None:
        self.series: list[tuple[int, int, dict[str, float]]] = []
        self.done: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, unit: str, /) -> None:
        self.done.append((done, total, unit))

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        self.series.append((step, tokens, dict(values)))


class Arguments:
    device = torch.device("cpu")
    output_dir = "checkpoints"


def guard(recorder: Recorder, flag: StopFlag | None = None, every: int = 100) -> StepGuard:
    return StepGuard(
        flag=StopFlag() if flag is None else flag,
        clock=CheckpointClock(every_steps=every),
        tokens_after_steps=[64, 128, 160],
        reporter=recorder,
    )


def log(step_guard: StepGuard, step: int, **logs: float) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=True)
    step_guard.on_log(cast("Any", Arguments()), state, TrainerControl(), logs=logs)


def step_end(step_guard: StepGuard, step: int) -> TrainerControl:
    control = TrainerControl()
    state = TrainerState(global_step=step, max_steps=3)
    step_guard.on_step_end(cast("Any", Arguments()), state, control)
    return control


def test_a_step_is_reported_with_its_tokens() -> None:
    recorder = Recorder()
    log(guard(recorder), 2, loss=1.5, learning_rate=1e-3, grad_norm=0.5)
    assert recorder.series == [(2, 128, {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.5})]
    assert recorder.done == [(128, 160, "tokens")]


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": 1.0, "grad_norm": math.inf}])
def test_a_loss_that_is_no_number_names_its_step(bad: dict[str, float]) -> None:
    with pytest.raises(WorkerError, match="training diverged at step 2") as caught:
        log(guard(Recorder()), 2, learning_rate=0.25, **bad)
    assert "learning_rate: 0.25" in str(caught.value)
    assert "Nothing was published" in str(caught.value)


def test_a_signal_saves_and_stops_at_the_next_step_end() -> None:
    flag = StopFlag()
    step_guard = guard(Recorder(), flag)
    control = step_end(step_guard, 1)
    assert not control.should_save
    assert not control.should_training_stop
    flag.name = "SIGTERM"
    control = step_end(step_guard, 2)
    assert control.should_save
    assert control.should_training_stop
    assert step_guard.interrupted_at == 2


def test_a_signal_at_the_last_step_changes_nothing() -> None:
    flag = StopFlag()
    flag.name = "SIGTERM"
    step_guard = guard(Recorder(), flag)
    control = step_end(step_guard, 3)
    assert not control.should_save
    assert step_guard.interrupted_at is None


def test_checkpoints_by_steps() -> None:
    step_guard = guard(Recorder(), every=2)
    assert [step_end(step_guard, step).should_save for step in (1, 2)] == [False, True]


def test_checkpoints_by_the_clock_never_take_more_than_their_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = CheckpointClock(every_steps=10**9, lost_seconds=10.0, share=0.05)
    now = 9.0
    assert not clock.due(1)
    now = 10.0
    assert clock.due(2)
    clock.start()
    now = 13.0  # it took 3 seconds: the next is due after 60
    clock.stop()
    now = 13.0 + 59.0
    assert not clock.due(3)
    now = 13.0 + 60.0
    assert clock.due(4)


def entry(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1.0 / step, "learning_rate": 0.1, "grad_norm": 2.0, "epoch": 0.5}


def test_the_trace_has_one_row_for_each_step() -> None:
    rows = trace_of([entry(1), entry(2), {"step": 2, "train_loss": 1.0}], [64, 128])
    assert [list(row) for row in rows] == [
        ["step", "tokens", "loss", "learning_rate", "grad_norm"]
    ] * 2
    assert [row["tokens"] for row in rows] == [64, 128]


@pytest.mark.parametrize("steps", [[1, 3], [1, 2], [1, 2, 2, 3]])
def test_a_trace_with_gaps_is_an_error(steps: list[int]) -> None:
    with pytest.raises(WorkerError, match="gaps or repetitions"):
        trace_of([entry(step) for step in steps], [64, 128, 192])
