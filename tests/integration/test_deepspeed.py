"""Ranks under torchrun on the CPU (gloo): the same losses, resume, and errors that come home.

Each training here starts two processes that import torch and DeepSpeed: about ten seconds.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpt_residual.core.stage import Metrics
from cpt_residual.errors import WorkerError
from cpt_residual.train.job import TrainingInterruptedError, TrainJob
from cpt_residual.train.worker import run
from support.hub_family import write_hub_family
from support.training import LENGTH, job, write_model, write_pack

NUM_STEPS = 120
NUM_ROWS = 4 * NUM_STEPS - 2  # the last step has filler

Case = tuple[Path, Path]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("ranks")
    model = write_model(folder / "model")
    return model, write_pack(folder / "pack", model, num_rows=NUM_ROWS)


class Sink:
    """Keeps the series; sends this process a signal when `stop_at` is reported, or SIGKILL to
    the rank `kills`."""

    def __init__(self, stop_at: int | None = None, *, kills: int | None = None) -> None:
        self.steps: list[int] = []
        self.stop_at = stop_at
        self.kills = kills

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        self.steps.append(step)
        if step == self.stop_at:
            if self.kills is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                os.kill(_rank_below(os.getpid(), self.kills), signal.SIGKILL)


def _rank_below(ancestor: int, rank: int) -> int:
    """The process id of a rank that torchrun, a child of `ancestor`, has started."""
    waiting = [ancestor]
    while waiting:
        pid = waiting.pop()
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            waiting += map(int, children.read_text().split())
    raise AssertionError(f"no rank {rank}")


def train(training: TrainJob, sink: Sink | None = None) -> Metrics:
    return run(training, progress=lambda *_: None, metrics=sink)


def two_ranks(folder: Path, case: Case, zero_stage: object, **changes: object) -> TrainJob:
    launch = {"num_processes": 2, "checkpoint_every_steps": 50}
    return job(folder, *case, launch=launch, zero_stage=zero_stage, **changes)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "trace.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, case: Case) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(job(folder, *case))
    return folder / "out"


@pytest.fixture(scope="module")
def zero_2(tmp_path_factory: pytest.TempPathFactory, case: Case) -> Path:
    folder = tmp_path_factory.mktemp("two")
    sink = Sink()
    train(two_ranks(folder, case, 2), sink)
    assert sink.steps == list(range(1, NUM_STEPS + 1))
    return folder / "out"


def test_two_ranks_with_zero_2_agree_with_one_process(one_process: Path, zero_2: Path) -> None:
    # Rounding differences grow with the steps; the first twenty show that the batches are equal.
    assert losses(zero_2)[:20] == pytest.approx(losses(one_process)[:20], abs=1e-5)
    assert losses(zero_2) == pytest.approx(losses(one_process), abs=1e-2)
    ours, theirs = (load_file(out / "model.safetensors") for out in (zero_2, one_process))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_ranks_that_were_stopped_resume_bit_for_bit(
    zero_2: Path, case: Case, tmp_path: Path
) -> None:
    training = two_ranks(tmp_path, case, 2)
    with pytest.raises(TrainingInterruptedError, match=rf"of {NUM_STEPS}; rerun resumes"):
        train(training, Sink(stop_at=10))
    (checkpoint,) = training.checkpoints.glob("checkpoint-*")
    assert (checkpoint / "COMPLETE.json").exists()
    sink = Sink()
    train(training, sink)
    assert sink.steps == list(range(1, NUM_STEPS + 1)), "what came before is reported again"
    for path in zero_2.iterdir():
        if path.is_file():
            assert (training.out / path.name).read_bytes() == path.read_bytes(), path.name


def test_zero_3_in_bf16_keeps_exact_masters(case: Case, tmp_path: Path) -> None:
    """With no step size to speak of, the fp32 model comes out as it went in, although DeepSpeed
    computes in bf16, and it comes out whole, although no rank ever held all of it."""
    model, _ = case
    pack = write_pack(tmp_path / "pack", model, num_rows=8)
    metrics = train(
        two_ranks(tmp_path, (model, pack), 3, precision="bf16", learning_rate=1e-30, warmup_steps=1)
    )
    start, out = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert start.keys() == out.keys()
    for name, tensor in start.items():  # rounding to bf16 would move them by 1e-4
        assert torch.allclose(out[name], tensor, rtol=0, atol=1e-29), name
    assert "lost_share" not in metrics  # the model is stored in fp32: nothing is rounded


@pytest.mark.slow
def test_names_that_the_class_decides_are_known_under_zero_3(tmp_path: Path) -> None:
    """Every rank asks the class while transformers shards whatever model is built."""
    start = write_hub_family(tmp_path, "pythia").base
    pack = write_pack(tmp_path / "pack", start, num_rows=40)
    training = two_ranks(tmp_path, (start, pack), 3, precision="bf16", learning_rate=3e-2)
    train(training)
    found = losses(training.out)
    assert min(found[1:]) < 0.9 * found[0]


@pytest.mark.slow
def test_experts_that_are_stored_one_by_one_are_trained_with_zero_2(tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, "mixtral").base
    pack = write_pack(tmp_path / "pack", start, num_rows=40)
    training = two_ranks(tmp_path, (start, pack), 2, precision="bf16", learning_rate=3e-2)
    metrics = train(training)
    found = losses(training.out)
    assert min(found[1:]) < 0.9 * found[0]
    assert "lost_share" not in metrics  # the experts would not be counted
    before, after = (load_file(folder / "model.safetensors") for folder in (start, training.out))
    assert before.keys() == after.keys()
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        assert before[name].dtype == after[name].dtype == torch.bfloat16
        assert not torch.equal(before[name], after[name]), name


def test_plain_data_parallelism_reports_the_error_of_a_rank(case: Case, tmp_path: Path) -> None:
    model, _ = case
    pack = write_pack(tmp_path / "pack", model, num_rows=8)
    training = two_ranks(tmp_path, (model, pack), "off", learning_rate=1e20, warmup_steps=0)
    with pytest.raises(WorkerError, match=r"training diverged at step 2") as caught:
        train(training)
    assert caught.value.remedy.startswith("Nothing was published.")
    assert training.batching(num_rows=8, sequence_length=LENGTH).micro_batch_rows == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_and_not_the_echo_of_the_other(
    case: Case, tmp_path: Path, rank: int
) -> None:
    training = two_ranks(tmp_path, case, 2)
    with pytest.raises(WorkerError) as caught:
        train(training, Sink(stop_at=5, kills=rank))
    assert caught.value.what == f"rank {rank} of the training was killed by SIGKILL"
    assert "memory ran out" in caught.value.remedy
    assert not (training.out / "model.safetensors").exists()
