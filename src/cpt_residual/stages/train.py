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
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, RunContext, Stage
from cpt_residual.launch.environment import uses_gpu
from cpt_residual.stages.inputs import num_parameters_of
from cpt_residual.stages.pack import PackStage

_CPU_FLOPS_PER_THREAD = 80e9  # measured: one AVX-512 core, rows of 128 tokens, fp32
_GPU_FLOPS = 350e12  # bf16 with ZeRO, about a third of an H100's peak
_SECONDS_PER_RUN = 0.7
_SECONDS_TO_START_RANKS = 12.0
_BYTES_PER_CHECKPOINT = 2 * 16  # two checkpoints: weights, fp32 masters, two moments
_PROCESS_BYTES = 600 * 2**20  # Python with torch and transformers
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
        them at a stated rate, memory is weights, gradients and optimizer per process, plus
        activations where the architecture is known."""
        tokens, length = self.pack.pack.token_budget, self.pack.pack.sequence_length
        rows = rows_per_step(self.training, self.pack.pack)
        flops = self._flops(tokens, length)
        processes = self.launch.num_processes
        return Cost(
            tokens=tokens,
            steps=num_steps(-(-tokens // length), max(rows, 1)),
            flops=flops,
            seconds=self._seconds(flops),
            memory_bytes=self._memory(rows, length),
            disk_bytes=self._bytes_per_weight() * self.num_parameters(),
            scratch_bytes=_BYTES_PER_CHECKPOINT * self.num_parameters(),
            cores=self.threads * processes,
        )

    def _flops(self, tokens: int, length: int) -> float:
        per_token = 2.0 * _BACKWARD * self.num_parameters()
        shape = self.architecture()
        if shape is not None:
            per_token += 4.0 * _BACKWARD * shape.num_layers * length * shape.hidden_size
        return tokens * per_token

    def _seconds(self, flops: float) -> float:
        processes = self.launch.num_processes
        rate = _GPU_FLOPS if uses_gpu(self.launch) else _CPU_FLOPS_PER_THREAD * self.threads
        ranks = processes > 1 or self.deepspeed.zero_stage != "off"
        start = _SECONDS_TO_START_RANKS if ranks else _SECONDS_PER_RUN
        return start + flops / (rate * processes)

    def _bytes_per_weight(self) -> int:
        return 2 if self.training.precision == "bf16" else 4

    def _memory(self, rows: int, length: int) -> int:
        stage, parameters = self.deepspeed.zero_stage, self.num_parameters()
        shares = {
            kind: self.launch.num_processes if stage != "off" and stage >= first else 1
            for kind, first in (("optimizer", 1), ("gradients", 2), ("weights", 3))
        }
        mixed = stage != "off" and self.training.precision == "bf16"
        weights, optimizer = (2, 12) if mixed else (4, 8)  # fp32 masters are the optimizer's
        if self.deepspeed.offload_optimizer and uses_gpu(self.launch):
            optimizer = 0
        state = parameters * (
            weights / shares["weights"] + 4 / shares["gradients"] + optimizer / shares["optimizer"]
        )
        base = 0 if uses_gpu(self.launch) else _PROCESS_BYTES
        return base + math.ceil(state) + self._activations(rows, length)

    def _activations(self, rows: int, length: int) -> int:
        """Saved tensors of one micro-batch: about 16 of width `hidden` and 3 of the feed-forward
        width per layer and token, attention scores, and three copies of the logits in fp32."""
        shape = self.architecture()
        if shape is None:
            return 0
        micro = micro_batch_rows_used(rows, self.launch.num_processes, self.launch.micro_batch_rows)
        layer = 16 * shape.hidden_size + 3 * shape.intermediate_size + shape.num_heads * length
        if self.launch.gradient_checkpointing:
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
