"""Resume equals uninterrupted, bit for bit, for a kill at any step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.launch.environment import child_environment
from cpt_residual.train.job import TrainingInterruptedError, TrainJob
from cpt_residual.train.worker import run
from support.staged import contents
from support.training import job, write_model, write_pack

NUM_STEPS = 6


class KilledError(Exception):
    """Stands for a process that ends between two instructions."""


class At:
    """Does something when a step is logged: after the optimizer step, before its checkpoint."""

    def __init__(self, step: int, action: str) -> None:
        self.step, self.action = step, action

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        if step == self.step:
            if self.action == "die":
                raise KilledError
            os.kill(os.getpid(), getattr(signal, self.action))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Start model, pack, and the output of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("resume")
    model = write_model(folder / "model")
    pack = write_pack(folder / "pack", model)
    run(job(folder, model, pack), progress=lambda *_: None, metrics=None)
    return model, pack, folder / "out"


def finish(training: TrainJob, metrics: At | None = None) -> None:
    shutil.rmtree(training.out, ignore_errors=True)
    run(training, progress=lambda *_: None, metrics=metrics)


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_a_kill_at_any_step(world: tuple[Path, Path, Path], tmp_path: Path, step: int) -> None:
    model, pack, expected = world
    training = job(tmp_path, model, pack, launch={"checkpoint_every_steps": 2})
    with pytest.raises(KilledError):
        finish(training, At(step, "die"))
    checkpoints = sorted(path.name for path in training.checkpoints.glob("checkpoint-*"))
    assert checkpoints == ([f"checkpoint-{(step - 1) // 2 * 2}"] if step > 2 else [])
    finish(training)
    assert contents(training.out) == contents(expected)


def test_kill_after_kill(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, pack, expected = world
    training = job(tmp_path, model, pack, launch={"checkpoint_every_steps": 1})
    for step in (2, 3, 3, 5):
        with pytest.raises(KilledError):
            finish(training, At(step, "die"))
    finish(training)
    assert contents(training.out) == contents(expected)


def test_a_kill_while_a_checkpoint_is_written(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The newest checkpoint lacks its marker: the one before it counts."""
    model, pack, expected = world
    training = job(tmp_path, model, pack, launch={"checkpoint_every_steps": 2})
    with pytest.raises(KilledError):
        finish(training, At(3, "die"))
    debris = training.checkpoints / "checkpoint-4"
    shutil.copytree(training.checkpoints / "checkpoint-2", debris)
    (debris / "COMPLETE.json").unlink()
    (debris / "optimizer.pt").write_bytes(b"half")
    finish(training)
    assert not debris.exists() or (debris / "COMPLETE.json").exists()
    assert contents(training.out) == contents(expected)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_says_where_a_rerun_resumes(
    world: tuple[Path, Path, Path], tmp_path: Path, name: str
) -> None:
    model, pack, expected = world
    training = job(tmp_path, model, pack)
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(TrainingInterruptedError) as caught:
        finish(training, At(3, name))
    # The signal arrives while step 3 is logged, so the next step's end sees it.
    assert f"interrupted by {name} at step 4 of 6; rerun resumes at step 5" in str(caught.value)
    assert signal.getsignal(getattr(signal, name)) is before
    assert not training.out.exists()
    finish(training)
    assert contents(training.out) == contents(expected)


_KILLED = """
import os, sys, time
from pathlib import Path
from cpt_residual.train.job import TrainJob
from cpt_residual.train.worker import run

class Slow:
    def log(self, values, *, tokens, step):
        time.sleep(0.2)

run(TrainJob.read(Path(sys.argv[1])), progress=lambda *_: None, metrics=Slow())
"""


def test_a_real_kill_9(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, pack, expected = world
    training = job(tmp_path, model, pack, launch={"checkpoint_every_steps": 1})
    training.write(tmp_path / "job.json")
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "job.json")],
        env=child_environment(threads=1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(training.checkpoints.glob("checkpoint-*/COMPLETE.json")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (training.out / "model.safetensors").exists()
    finish(training)
    assert contents(training.out) == contents(expected)
