"""What happens after every optimizer step: stop requests, checkpoints, series, and the guard
against losses that are not numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cpt_residual.errors import WorkerError
from cpt_residual.launch.torchrun import StopFlag
from cpt_residual.train.group import maximum

TraceRow = dict[str, float | int]


class Reporter(Protocol):
    """Where a rank reports its progress and its series."""

    def progress(self, done: int, total: int, unit: str, /) -> None: ...

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None: ...


@dataclass
class CheckpointClock:
    """Says when a checkpoint is due: every `every_steps` steps, and by the clock so often that a
    kill costs about `lost_seconds`, but never so often that writing takes more than a twentieth
    of the time. When checkpoints are written cannot be seen in the result."""

    every_steps: int
    lost_seconds: float = 10.0
    share: float = 0.05

    def __post_init__(self) -> None:
        self._written_at = time.monotonic()
        self._price = 0.0
        self._started_at = self._written_at

    def due(self, step: int) -> bool:
        if step % self.every_steps == 0:
            return True
        wait = max(self.lost_seconds, self._price / self.share)
        return time.monotonic() - self._written_at >= wait

    def start(self) -> None:
        self._started_at = time.monotonic()

    def stop(self) -> None:
        self._written_at = time.monotonic()
        self._price = self._written_at - self._started_at


class StepGuard(TrainerCallback):
    """The only callback of ours.

    All ranks agree on whether to stop or to save (the maximum over ranks), because a signal does
    not reach them at the same step and a checkpoint needs all of them."""

    def __init__(
        self,
        *,
        flag: StopFlag,
        clock: CheckpointClock,
        tokens_after_steps: Sequence[int],
        reporter: Reporter,
    ) -> None:
        self.interrupted_at: int | None = None
        self._flag = flag
        self._clock = clock
        self._tokens = tokens_after_steps
        self._reporter = reporter

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del kwargs
        if state.global_step >= state.max_steps:
            return  # the model itself is written now
        stop, save = maximum([bool(self._flag), self._clock.due(state.global_step)], args.device)
        if stop:
            self.interrupted_at = state.global_step
            control.should_training_stop = True
        if stop or save:
            control.should_save = True
            self._clock.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        del control, kwargs, args
        if not logs or "loss" not in logs:
            return
        self._check_finite(state.global_step, logs)
        if state.is_world_process_zero:
            self._report({**logs, "step": state.global_step})
            tokens = self._tokens[state.global_step - 1]
            self._reporter.progress(tokens, self._tokens[-1], "tokens")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a resume, the rows of all steps before it: a new run folder has none of them, and
        a W&B that was killed may lack the last ones."""
        del args, control, kwargs
        if state.is_world_process_zero:
            for entry in state.log_history:
                if "loss" in entry:
                    self._report(entry)

    def _report(self, entry: Mapping[str, Any]) -> None:
        step = int(entry["step"])
        row = _trace_row(entry, self._tokens[step - 1])
        series = {name: value for name, value in row.items() if name not in ("step", "tokens")}
        self._reporter.log(series, tokens=self._tokens[step - 1], step=step)

    @staticmethod
    def _check_finite(step: int, logs: Mapping[str, float]) -> None:
        bad = [
            f"{name}: {logs[name]}"
            for name in ("loss", "grad_norm")
            if not math.isfinite(logs.get(name, 0.0))
        ]
        if bad:
            raise WorkerError(
                f"training diverged at step {step}",
                problems=[*bad, f"learning_rate: {logs.get('learning_rate')}"],
                remedy="Nothing was published. Lower learning_rate, raise warmup_steps, or train "
                "in fp32.",
            )

    def checkpoint_path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"

    def checkpoint_written(self) -> None:
        self._clock.stop()


def trace_of(
    history: Sequence[Mapping[str, Any]], tokens_after_steps: Sequence[int]
) -> list[TraceRow]:
    """The trace from Trainer's log history, which its checkpoints carry: one row for every step,
    the same for an interrupted and an uninterrupted run. Raises WorkerError on a gap."""
    rows = [
        _trace_row(entry, tokens_after_steps[int(entry["step"]) - 1])
        for entry in history
        if "loss" in entry
    ]
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(tokens_after_steps) + 1)):
        raise WorkerError(
            "the training trace has gaps or repetitions",
            problems=[
                f"{len(tokens_after_steps)} steps wanted, logged: {steps[:3]} ... {steps[-3:]}"
            ],
            remedy="The checkpoint is damaged: delete this stage's checkpoints and rerun.",
        )
    return rows


def last_loss(trace: Sequence[TraceRow]) -> float:
    """Mean loss over the last twentieth of the steps, each weighted by its tokens: the very last
    step holds what is left of the token budget, which may be a few tokens or no label at all."""
    before = [0, *(row["tokens"] for row in trace)]
    steps = [
        (float(row["loss"]), row["tokens"] - earlier)
        for row, earlier in zip(trace, before, strict=False)
        if row["loss"] != 0
    ]
    last = steps[-max(1, len(steps) // 20) :]
    tokens = sum(weight for _, weight in last)
    return sum(loss * weight for loss, weight in last) / tokens if tokens else 0.0


def _trace_row(entry: Mapping[str, Any], tokens: int) -> TraceRow:
    return {
        "step": int(entry["step"]),
        "tokens": tokens,
        "loss": float(entry["loss"]),
        "learning_rate": float(entry["learning_rate"]),
        "grad_norm": float(entry.get("grad_norm", 0.0)),
    }
