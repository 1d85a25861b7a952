"""The job of a rank: cutting steps, JSON, and what a checkpoint must have in common with it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.schema import DeepSpeed, Launch, TrainRecipe
from cpt_residual.errors import ConfigError, WorkerError
from cpt_residual.train.job import TrainingInterruptedError, TrainJob

RECIPE = TrainRecipe(stage="cpt", pack="text", global_batch_tokens=96, learning_rate=1e-3)


def make_job(**changes: object) -> TrainJob:
    fields: dict[str, object] = {
        "start": Path("/models/start"),
        "pack": Path("/packs/text"),
        "tokenizer": Path("/models/start"),
        "out": Path("/scratch/out"),
        "scratch": Path("/scratch/training"),
        "recipe": RECIPE,
        "seed": 1,
    }
    return TrainJob.model_validate(fields | changes)


def test_a_job_survives_json(tmp_path: Path) -> None:
    job = make_job(
        launch=Launch(num_processes=2, threads_for={"base": 2}),
        deepspeed=DeepSpeed(zero_stage=2),
        resume_from=Path("/scratch/training/checkpoints/checkpoint-3"),
    )
    job.write(tmp_path / "job.json")
    assert TrainJob.read(tmp_path / "job.json") == job


@given(
    rows_per_process=st.integers(1, 64),
    processes=st.integers(1, 16),
    micro=st.integers(1, 64),
    num_rows=st.integers(1, 500),
)
def test_every_step_has_the_same_rows_however_it_is_cut(
    rows_per_process: int, processes: int, micro: int, num_rows: int
) -> None:
    rows = rows_per_process * processes
    recipe = RECIPE.model_copy(update={"global_batch_tokens": rows * 16})
    job = make_job(recipe=recipe, launch=Launch(num_processes=processes, micro_batch_rows=micro))
    cut = job.batching(num_rows=num_rows, sequence_length=16)
    assert cut.rows_per_step == rows
    assert cut.micro_batch_rows * cut.accumulation_steps * processes == rows
    assert cut.micro_batch_rows <= micro
    assert num_rows <= cut.num_rows < num_rows + rows


@pytest.mark.parametrize(("length", "processes"), [(16, 4), (64, 1), (128, 1)])
def test_a_batch_that_cannot_be_cut_is_refused(length: int, processes: int) -> None:
    job = make_job(launch=Launch(num_processes=processes))
    with pytest.raises(ConfigError) as caught:
        job.batching(num_rows=10, sequence_length=length)
    text = str(caught.value)
    assert "recipe.global_batch_tokens=96" in text
    assert f"multiple of sequence_length * num_processes = {length * processes}" in text


def test_checkpoints_of_plain_data_parallelism_fit_any_world_size() -> None:
    one, two = (make_job(launch=Launch(num_processes=n)) for n in (1, 2))
    layouts = [job.layout(job.batching(num_rows=6, sequence_length=16)) for job in (one, two)]
    assert layouts[0] == layouts[1]


def test_sharded_checkpoints_fit_their_world_size_only() -> None:
    jobs = [
        make_job(launch=Launch(num_processes=n), deepspeed=DeepSpeed(zero_stage=2)) for n in (1, 2)
    ]
    layouts = [job.layout(job.batching(num_rows=6, sequence_length=16)) for job in jobs]
    assert layouts[0] != layouts[1]


def test_ranks_are_spawned_only_where_needed() -> None:
    assert not make_job().spawns_ranks
    assert make_job(launch=Launch(num_processes=2)).spawns_ranks
    assert make_job(deepspeed=DeepSpeed(zero_stage=1)).spawns_ranks


def test_an_interruption_is_a_worker_error_that_crosses_processes() -> None:
    error = TrainingInterruptedError("interrupted at step 3; rerun resumes at step 4")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, TrainingInterruptedError)
    assert isinstance(copy, WorkerError)
    assert str(copy) == str(error)
    assert copy.exit_code == 75
