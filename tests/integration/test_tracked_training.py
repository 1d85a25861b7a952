"""A real training that is tracked online: what W&B does can never be seen in its result."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel

from cpt_residual.config.schema import Tracking
from cpt_residual.core.stage import MetricSink, Node
from cpt_residual.tracking.outcome import upload_lines
from cpt_residual.tracking.series import read_series, series_path
from cpt_residual.tracking.sinks import open_sinks
from cpt_residual.train.job import TrainingInterruptedError
from cpt_residual.train.worker import run
from support.staged import contents
from support.training import job, write_model, write_pack
from support.wandb_endpoint import WandbEndpoint

STEPS = [1, 2, 3, 4, 5, 6]


class Recipe(BaseModel):
    learning_rate: float = 0.001


@dataclass(frozen=True)
class Stage:
    name: ClassVar[str] = "cpt"
    version: ClassVar[int] = 1
    node: str = "cpt:base_cpt"

    def recipe(self) -> Recipe:
        return Recipe()


class KilledError(Exception):
    """Stands for a process that ends between two instructions."""


@dataclass
class KillsAt:
    """Passes rows on; at step 3 the service process of W&B dies, the training, or, as SLURM has
    it when a job is requeued, both get SIGTERM."""

    sinks: MetricSink
    what: str

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        if step == 3 and self.what == "training":
            raise KilledError
        if step == 3:
            os.kill(_service(), signal.SIGTERM)
            time.sleep(0.5)
        if step == 3 and self.what == "requeue":
            os.kill(os.getpid(), signal.SIGTERM)
        self.sinks.log(values, tokens=tokens, step=step)


def _service() -> int:
    for tasks in Path("/proc/self/task").glob("*/children"):
        for child in tasks.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "wandb-core":
                return int(child)
    raise LookupError("no wandb-core below this process")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """Start model, pack, and the output of a training that is not tracked."""
    folder = tmp_path_factory.mktemp("tracked")
    model = write_model(folder / "model")
    pack = write_pack(folder / "pack", model)
    run(job(folder, model, pack), progress=lambda *_: None, metrics=None)
    return model, pack, contents(folder / "out")


def _track(
    tmp_path: Path, world: tuple[Path, Path, dict[str, bytes]], run_dir: Path, what: str
) -> None:
    training = job(tmp_path, *world[:2], launch={"checkpoint_every_steps": 2})
    node = Node(Stage(), "ab" * 32, 0, {})  # type: ignore[arg-type]
    tracking = Tracking(wandb="online", project="p")
    with open_sinks(tracking, experiment="tiny", seed=0, node=node, run_dir=run_dir) as sinks:
        metrics = KillsAt(sinks, what) if what else sinks
        run(training, progress=lambda *_: None, metrics=metrics)
        sinks.summarise({"final_loss": 1.0})
    assert contents(training.out) == world[2]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbEndpoint]:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    with WandbEndpoint() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


def _steps(endpoint: WandbEndpoint) -> list[int]:
    (run,) = endpoint.runs.values()
    return [row["_step"] for row in run.history if "loss" in row]


def test_the_bytes_are_the_same_when_the_service_process_of_wandb_dies(
    endpoint: WandbEndpoint, world: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    _track(tmp_path, world, run_dir, "service")
    assert [row["step"] for row in read_series(series_path(run_dir, "cpt:base_cpt"))] == STEPS
    lines = upload_lines(run_dir)
    assert lines[0] == "W&B has not received 1 of 1 runs:"
    assert "wandb sync" in lines[-1]


def test_a_resumed_training_reports_the_steps_before_it_in_a_new_folder_and_to_the_server(
    endpoint: WandbEndpoint, world: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        _track(tmp_path, world, tmp_path / "first", "training")
    endpoint.runs.clear()  # as when none of its rows were sent
    second = tmp_path / "second"
    _track(tmp_path, world, second, "")
    rows = read_series(series_path(second, "cpt:base_cpt"))
    assert [row["step"] for row in rows] == STEPS
    assert _steps(endpoint) == STEPS
    assert upload_lines(second) == []


def test_a_requeue_that_terminates_every_process_keeps_a_checkpoint_and_then_all_rows(
    endpoint: WandbEndpoint, world: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(TrainingInterruptedError):
        _track(tmp_path, world, run_dir, "requeue")
    checkpoints = job(tmp_path, *world[:2]).checkpoints
    assert list(checkpoints.glob("checkpoint-[34]"))  # whichever step has seen the signal
    assert upload_lines(run_dir)[0] == "W&B has not received 1 of 1 runs:"
    _track(tmp_path, world, run_dir, "")
    assert _steps(endpoint) == STEPS
    assert upload_lines(run_dir) == []
