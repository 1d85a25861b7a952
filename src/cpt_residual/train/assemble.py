"""`TrainingArguments` and `Trainer` from a job: the one place where they are derived."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from cpt_residual.errors import LaunchError
from cpt_residual.launch.environment import rank_environment, too_few_gpus
from cpt_residual.train.callbacks import StepGuard
from cpt_residual.train.checkpoint import discard_older, mark_complete
from cpt_residual.train.dataset import PackDataset, collate
from cpt_residual.train.deepspeed_config import deepspeed_config
from cpt_residual.train.job import Batching, Layout, TrainJob


def uses_cpu(job: TrainJob) -> bool:
    """Whether the ranks compute on the CPU. Raises LaunchError when the GPUs do not suffice."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if job.launch.device == "cpu" or (job.launch.device == "auto" and available == 0):
        return True
    if available < job.launch.num_processes:
        raise too_few_gpus(job.launch, available)
    return False


def training_arguments(job: TrainJob, batching: Batching) -> TrainingArguments:
    """Everything that Trainer is told. Nothing is reported, printed or saved by its own rules:
    checkpoints are decided by StepGuard, series leave through it."""
    recipe, cpu = job.recipe, uses_cpu(job)
    cosine = recipe.schedule == "cosine"
    return TrainingArguments(
        output_dir=str(job.checkpoints),
        per_device_train_batch_size=batching.micro_batch_rows,
        gradient_accumulation_steps=batching.accumulation_steps,
        max_steps=batching.num_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": recipe.min_learning_rate_ratio} if cosine else {},
        warmup_steps=recipe.warmup_steps,
        optim="adamw_torch",
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        average_tokens_across_devices=True,
        activation_checkpointing=job.launch.gradient_checkpointing,
        activation_checkpointing_kwargs=(
            {"use_reentrant": False} if job.launch.gradient_checkpointing else None
        ),
        use_cache=False,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=cpu,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_drop_last=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it replaces a NaN loss by the mean of the last ones
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        save_strategy="no",
        eval_strategy="no",
        deepspeed=deepspeed_config(
            job.deepspeed,
            precision=recipe.precision,
            micro_batch_rows=batching.micro_batch_rows,
            accumulation_steps=batching.accumulation_steps,
            num_processes=job.launch.world_size,
            max_grad_norm=recipe.max_grad_norm,
        ),
    )


class CptTrainer(Trainer):
    """`Trainer` with checkpoints that are complete or absent, and without its FLOP estimate
    (which walks over all parameters at every micro-batch)."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        dataset: PackDataset,
        guard: StepGuard,
        layout: Layout,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=cast("Any", dataset),
            data_collator=cast("Any", collate),
            callbacks=[guard],
        )
        self.remove_callback(PrinterCallback)
        self._guard = guard
        self._layout = layout

    def check(self, job: TrainJob) -> None:
        """Raise LaunchError for set-ups in which training runs, but not the one asked for."""
        facts: dict[str, tuple[object, object]] = {
            "DeepSpeed in use": (self.is_deepspeed_enabled, job.deepspeed.zero_stage != "off"),
            "processes": (self.accelerator.num_processes, job.launch.world_size),
            "WORLD_SIZE": (rank_environment().world_size, job.launch.world_size),
            "GPUs per process": (max(self.args.n_gpu, 1), 1),
            "device": (self.args.device.type, "cpu" if self.args.use_cpu else "cuda"),
            "loss averaged over all tokens": (self.model_accepts_loss_kwargs, True),
        }
        bad = [
            f"{what}: {got}, wanted {wanted}"
            for what, (got, wanted) in facts.items()
            if got != wanted
        ]
        if bad:
            raise LaunchError(
                "the training would run, but not as it was asked for",
                problems=bad,
                remedy="Start training through cpt_residual itself, which runs torchrun; on a "
                "machine with several GPUs use launch.num_processes or CUDA_VISIBLE_DEVICES.",
            )

    def release(self) -> None:
        """Drop the engine, the optimizer and every reference to them. The process group may be
        destroyed only afterwards: in another order gloo aborts at exit."""
        self.accelerator.free_memory()
        self.model_wrapped = self.deepspeed = self.optimizer = self.lr_scheduler = None
        handler = cast("Any", self.callback_handler)
        handler.model = handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> torch.Tensor | int | None:
        """At least 1: the tail of a token budget can be a step without a single label, whose loss
        is 0 and moves nothing by its gradient, but would be 0/0."""
        count = super()._get_num_items_in_batch(batch_samples, device)
        return count.clamp(min=1) if isinstance(count, torch.Tensor) else count

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        del inputs
        return 0

    def save_model(  # the signature is Trainer's
        self,
        output_dir: str | None = None,
        _internal_call: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """DeepSpeed's own checkpoint holds the weights; a second copy would be a gather of the
        whole model that nobody reads."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            path = self._guard.checkpoint_path(self.args, self.state)
            mark_complete(path, self._layout)
            discard_older(path.parent, path)
        self.accelerator.wait_for_everyone()
        self._guard.checkpoint_written()
