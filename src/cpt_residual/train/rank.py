"""The work of one rank: load, train or resume, write."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, TrainingArguments

from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.errors import LaunchError
from cpt_residual.launch.environment import rank_environment
from cpt_residual.launch.torchrun import StopFlag
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.train.assemble import CptTrainer, training_arguments
from cpt_residual.train.callbacks import (
    CheckpointClock,
    Reporter,
    StepGuard,
    last_loss,
    trace_of,
)
from cpt_residual.train.dataset import PackDataset
from cpt_residual.train.final import ExactMasters, write_model
from cpt_residual.train.group import barrier
from cpt_residual.train.job import Layout, RankResult, TrainingInterruptedError, TrainJob
from cpt_residual.train.stored import stored_dtype


def train_rank(job: TrainJob, *, reporter: Reporter, flag: StopFlag) -> RankResult:
    """Train this rank's share to the end and write the model (first rank) below `job.out`.

    Raises TrainingInterruptedError when `flag` rose and a checkpoint was written."""
    _check_world(job)
    pack = open_pack(job.pack)
    batching = job.batching(num_rows=len(pack), sequence_length=pack.sequence_length)
    # Before the model: ZeRO-3 shards while loading, and asking for the device joins the group.
    arguments = training_arguments(job, batching)
    _check_device(arguments)
    dataset = PackDataset(pack, num_rows=batching.num_rows)
    guard = StepGuard(
        flag=flag,
        clock=CheckpointClock(every_steps=job.launch.checkpoint_every_steps),
        tokens_after_steps=dataset.tokens_after_steps(batching.rows_per_step),
        reporter=reporter,
    )
    with _trainer(job, arguments, dataset, guard, job.layout(batching)) as trainer:
        trainer.check(job)
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
        if guard.interrupted_at is not None:
            raise _interrupted(guard.interrupted_at, batching.num_steps, flag)
        return _finish(job, trainer, dataset.tokens_after_steps(batching.rows_per_step))


def _check_world(job: TrainJob) -> None:
    """A job for N processes that finds another number of ranks trains on the wrong share."""
    world = rank_environment().world_size
    if world != job.launch.world_size:
        raise LaunchError(
            "the number of ranks is not the number asked for",
            problems=[f"WORLD_SIZE={world}", f"asked for: {job.launch.world_size}"],
            remedy="Start training through cpt_residual itself, which runs torchrun.",
        )


def _check_device(arguments: TrainingArguments) -> None:
    """`use_cpu=False` without a GPU trains every rank on the same rows, and raises nothing."""
    kind = arguments.device.type
    if kind != ("cpu" if arguments.use_cpu else "cuda"):
        raise LaunchError(
            f"training would run on {kind}",
            problems=[f"use_cpu={arguments.use_cpu}"],
            remedy="Set launch.device to cpu or cuda.",
        )


def _interrupted(step: int, num_steps: int, flag: StopFlag) -> TrainingInterruptedError:
    return TrainingInterruptedError(
        f"interrupted by {flag.name or 'a signal to another rank'} at step {step} of {num_steps}; "
        f"rerun resumes at step {step + 1}",
        remedy="The checkpoint is complete. Run the same command again.",
    )


def _load(job: TrainJob, arguments: TrainingArguments) -> PreTrainedModel:
    """fp32 weights, so that the optimizer's values are exact; DeepSpeed in bf16 keeps its own
    masters, and the module is loaded as it is stored."""
    sharded_bf16 = arguments.bf16 and job.deepspeed.zero_stage != "off"
    dtype = stored_dtype(job.start) if sharded_bf16 else torch.float32
    return load_causal_lm(job.start, dtype=dtype)


@contextlib.contextmanager
def _trainer(
    job: TrainJob,
    arguments: TrainingArguments,
    dataset: PackDataset,
    guard: StepGuard,
    layout: Layout,
) -> Generator[CptTrainer]:
    """The trainer, and its teardown: without dropping the engine before the process group, gloo
    aborts most runs at exit."""
    if job.deepspeed.zero_stage != "off":
        _join_deepspeed(cpu=arguments.use_cpu)
    model = _load(job, arguments)
    trainer = CptTrainer(model, arguments, dataset=dataset, guard=guard, layout=layout)
    if arguments.bf16 and job.deepspeed.zero_stage != "off" and job.resume_from is None:
        trainer.add_callback(ExactMasters(job.start))
    try:
        yield trainer
    finally:
        trainer.release()
        del trainer, model
        gc.collect()


def _join_deepspeed(*, cpu: bool) -> None:
    """Tell DeepSpeed of the process group before the model is loaded: ZeRO-3 shards while loading
    and would take itself for a group of one.

    On the CPU without its shared-memory kernel, which is compiled at first use (that needs a C++
    compiler and half a minute) and changes no result."""
    import deepspeed.comm
    import deepspeed.ops

    if cpu:
        cast("Any", deepspeed.ops).__compatible_ops__["deepspeed_shm_comm"] = False
    cast("Any", deepspeed.comm).init_distributed(auto_mpi_discovery=False, verbose=False)


def _finish(job: TrainJob, trainer: CptTrainer, tokens_after_steps: list[int]) -> RankResult:
    """Write weights and trace."""
    is_first = rank_environment().is_first
    trace = trace_of(trainer.state.log_history, tokens_after_steps)
    dtype = torch.float32 if job.recipe.precision == "fp32" else stored_dtype(job.start)
    lost_share = write_model(
        cast("PreTrainedModel", trainer.accelerator.unwrap_model(cast("Any", trainer).model)),
        job.start,
        job.out,
        dtype=dtype,
        deepspeed=trainer.is_deepspeed_enabled,
        is_first=is_first,
    )
    if is_first:
        lines = [json.dumps(row, sort_keys=True) for row in trace]
        Path(job.out / "trace.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    barrier()
    return RankResult(final_loss=last_loss(trace), lost_share=lost_share)
