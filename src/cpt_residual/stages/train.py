"""Training of a model on a pack: pre-training, instruction tuning and CPT differ by recipe only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpt_residual.config.derived import micro_batch_rows_used, num_steps, rows_per_step
from cpt_residual.config.schema import Architecture, DeepSpeed, Frozen, Launch, TrainRecipe
from cpt_residual.core.rates import (
    CPU_FLOPS_PER_THREAD,
    GPU_PEAK_FLOPS,
    GPU_TRAINING_MFU,
    SECONDS_TO_START_RANKS,
    SECONDS_TO_START_TRAINING,
    TORCH_MEMORY,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.launch.environment import uses_gpu
from cpt_residual.stages.inputs import num_parameters_of
from cpt_residual.stages.pack import PackStage

_BYTES_PER_CHECKPOINT = 2 * 16  # two checkpoints: weights, fp32 masters, two moments
_BACKWARD = 3  # forward and backward cost three forwards


class TrainStageRecipe(Frozen):
    """The recipe without the name of its pack: the pack itself is an input."""

    settings: dict[str, str | int | float]
    seed: int


@dataclass(frozen=True)
class Train:
    """`start` trained with the recipe `training` on `pack`.

    `launch` and `deepspeed` say how, not what: they are no part of the identity."""

    key: str
    training: TrainRecipe
    start: Stage
    pack: PackStage
    seed: int
    launch: Launch
    deepspeed: DeepSpeed

    version: ClassVar[int] = 1
    tracked: ClassVar[bool] = True

    if TYPE_CHECKING:
        name: ClassVar[str]  # as the protocol has it; one class serves three names
    else:

        @property
        def name(self) -> str:
            return self.training.stage

    @property
    def node(self) -> str:
        return f"{self.training.stage}:{self.key}"

    def describe(self) -> str:
        """For the lineage tree."""
        return f"{self.pack.pack.token_budget:,} tokens of {self.pack.key}"

    def num_parameters(self) -> int:
        """Of the start model; 0 when not known yet."""
        return num_parameters_of(self.start)

    def architecture(self) -> Architecture | None:
        """Of the start model, where this experiment made it."""
        found = getattr(self.start, "architecture", None)
        found = found() if callable(found) else found
        return found if isinstance(found, Architecture) else None

    def recipe(self) -> TrainStageRecipe:
        settings = self.training.model_dump(mode="json", exclude={"pack"})
        return TrainStageRecipe(settings=settings, seed=self.seed)

    def inputs(self) -> Mapping[str, Stage]:
        """`tokenizer` is the model whose tokenizer wrote the pack: a mismatch can name the ids."""
        return {"start": self.start, "pack": self.pack, "tokenizer": self.pack.tokenizer}

    @property
    def layout_of(self) -> Stage:
        """Training changes values, no names or shapes, and keeps config and tokenizer."""
        return self.start

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """Start model and pack fit: token maps, positions, and a model that can be trained. Rows
        of whole documents may hold one each; the pack shows it."""
        start, tokenizer = folder_of(self.start), folder_of(self.pack.tokenizer)
        if start is None:
            return
        from cpt_residual.train.preflight import check_tokenizers, check_trainable

        packed = any(
            source.format == "text" and source.packing == "concat_chunk"
            for source in self.pack.pack.sources
        )
        yield partial(check_trainable, start, self.pack.pack.sequence_length, packed=packed)
        if tokenizer is not None:
            yield partial(check_tokenizers, start, tokenizer)

    @property
    def threads(self) -> int:
        """Torch threads of each process."""
        return self.launch.threads_for.get(self.key, self.launch.threads)

    # --- cost ------------------------------------------------------------------------------------
    def cost(self) -> Cost:
        """Tokens and steps without the padding of chat rows; FLOPs are 6 N per token and
        12 layers T hidden for attention (where the architecture is known), seconds follow from
        them at a stated rate."""
        tokens, length = self.pack.pack.token_budget, self.pack.pack.sequence_length
        rows = rows_per_step(self.training, self.pack.pack)
        flops = self._flops(tokens, length)
        return Cost(
            tokens=tokens,
            steps=num_steps(-(-tokens // length), max(rows, 1)),
            flops=flops,
            seconds=self._seconds(flops),
            disk_bytes=self._bytes_per_weight() * self.num_parameters(),
            scratch_bytes=_BYTES_PER_CHECKPOINT * self.num_parameters(),
        )

    def resources(self) -> Resources:
        """With GPUs the training state lies on them, and the host holds the ranks, the weights
        while they are loaded, and an optimizer that is offloaded."""
        launch, on_gpu = self.launch, uses_gpu(self.launch)
        ranks, state = launch.num_processes, self._state_bytes()
        loading = self._bytes_per_weight() * self.num_parameters()
        offloaded = 12 * self.num_parameters() if self.deepspeed.offload_optimizer else 0
        beside = loading + offloaded // launch.num_nodes if on_gpu else ranks * state
        return Resources(
            nodes=launch.num_nodes,
            gpus_per_node=ranks if on_gpu else 0,
            cores=self.threads * ranks,
            memory_bytes=ranks * TORCH_MEMORY + beside,
            gpu_memory_bytes=state if on_gpu else 0,
        )

    def _flops(self, tokens: int, length: int) -> float:
        per_token = 2.0 * _BACKWARD * self.num_parameters()
        shape = self.architecture()
        if shape is not None:
            per_token += 4.0 * _BACKWARD * shape.num_layers * length * shape.hidden_size
        return tokens * per_token

    def _seconds(self, flops: float) -> float:
        launch = self.launch
        on_gpu = GPU_PEAK_FLOPS * GPU_TRAINING_MFU
        rate = on_gpu if uses_gpu(launch) else CPU_FLOPS_PER_THREAD * self.threads
        ranks = launch.world_size > 1 or self.deepspeed.zero_stage != "off"
        start = SECONDS_TO_START_RANKS if ranks else SECONDS_TO_START_TRAINING
        return start + flops / (rate * launch.world_size)

    def _bytes_per_weight(self) -> int:
        return 2 if self.training.precision == "bf16" else 4

    def _state_bytes(self) -> int:
        """Of one rank: weights, gradients, optimizer, and activations where they are known."""
        stage, parameters = self.deepspeed.zero_stage, self.num_parameters()
        shares = {
            kind: self.launch.world_size if stage != "off" and stage >= first else 1
            for kind, first in (("optimizer", 1), ("gradients", 2), ("weights", 3))
        }
        mixed = stage != "off" and self.training.precision == "bf16"
        weights, optimizer = (2, 12) if mixed else (4, 8)  # fp32 masters are the optimizer's
        if self.deepspeed.offload_optimizer and uses_gpu(self.launch):
            optimizer = 0
        state = parameters * (
            weights / shares["weights"] + 4 / shares["gradients"] + optimizer / shares["optimizer"]
        )
        return math.ceil(state) + self._activations()

    def _activations(self) -> int:
        """Saved tensors of one micro-batch: about 16 of width `hidden` and 3 of the feed-forward
        width per layer and token, attention scores, and three copies of the logits in fp32."""
        shape, launch = self.architecture(), self.launch
        if shape is None:
            return 0
        length = self.pack.pack.sequence_length
        rows = rows_per_step(self.training, self.pack.pack)
        micro = micro_batch_rows_used(rows, launch.world_size, launch.micro_batch_rows)
        layer = 16 * shape.hidden_size + 3 * shape.intermediate_size + shape.num_heads * length
        if launch.gradient_checkpointing:
            layer = shape.hidden_size
        return 4 * micro * length * (shape.num_layers * layer + 3 * shape.vocab_size)

    # --- build -----------------------------------------------------------------------------------
    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.modeling.chat import install_chat_side
        from cpt_residual.train.job import TrainJob
        from cpt_residual.train.worker import run

        job = TrainJob(
            start=inputs["start"].path,
            pack=inputs["pack"].path,
            tokenizer=inputs["tokenizer"].path,
            out=work / "out",
            scratch=work / "training",
            recipe=self.training,
            seed=self.seed,
            threads=self.threads,
            launch=self.launch,
            deepspeed=self.deepspeed,
        )
        metrics = run(job, progress=ctx.progress, metrics=ctx.metrics)
        if self.training.stage == "sft":
            install_chat_side(inputs["start"].path, job.out)
        return metrics
