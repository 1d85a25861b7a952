"""The job of one rank, as a frozen value serialised to JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cpt_residual.base_model import Frozen
from cpt_residual.config.derived import accumulation_steps, micro_batch_rows_used, num_steps
from cpt_residual.config.schema import DeepSpeed, Launch, TrainRecipe
from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import ConfigError, WorkerError


class TrainingInterruptedError(WorkerError):
    """A signal stopped the training after it had written a checkpoint; a rerun resumes there."""

    exit_code = 75  # EX_TEMPFAIL: worth trying again


class RankResult(Frozen):
    """What the first rank found: the loss of the last step, and the share of moved weights that
    rounding to the stored dtype has put back (None: stored in fp32, nothing is rounded)."""

    final_loss: float
    lost_share: float | None


class Batching(Frozen):
    """How one optimizer step is cut. rows_per_step = processes * micro_batch_rows * accumulation,
    exactly: the trained weights do not depend on how it is cut, but for the order of sums."""

    rows_per_step: int
    micro_batch_rows: int
    accumulation_steps: int
    num_steps: int

    @property
    def num_rows(self) -> int:
        """Rows of the data set, filler included."""
        return self.rows_per_step * self.num_steps


class Layout(Frozen):
    """What has to be the same for a checkpoint to be loaded again."""

    zero_stage: Literal["off", 1, 2, 3]
    num_processes: int
    precision: Literal["fp32", "bf16"]
    num_steps: int
    rows_per_step: int


class TrainJob(Frozen):
    """One training run.

    start, pack, tokenizer: directories of the start model, the pack, and the model whose tokenizer
    wrote the pack; out: where the model goes; scratch: checkpoints and logs, kept after a kill;
    resume_from: a complete checkpoint, found by the parent before the ranks start.
    """

    start: Path
    pack: Path
    tokenizer: Path
    out: Path
    scratch: Path
    recipe: TrainRecipe
    seed: int
    threads: int = 1
    launch: Launch = Launch()
    deepspeed: DeepSpeed = DeepSpeed()
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.scratch / "checkpoints"

    @property
    def spawns_ranks(self) -> bool:
        """Whether torchrun is needed; otherwise the training runs in this process."""
        return self.launch.world_size > 1 or self.deepspeed.zero_stage != "off"

    def batching(self, *, num_rows: int, sequence_length: int) -> Batching:
        """Cut the steps. Raises ConfigError when the global batch is not a whole number of rows
        for every process."""
        recipe, processes = self.recipe, self.launch.world_size
        rows, rest = divmod(recipe.global_batch_tokens, sequence_length)
        if rest or rows == 0 or rows % processes:
            raise ConfigError(
                "the global batch cannot be cut into whole rows for every process",
                problems=[
                    f"recipe.global_batch_tokens={recipe.global_batch_tokens}",
                    f"pack.sequence_length={sequence_length}",
                    self.launch.ranks,
                ],
                remedy="Choose global_batch_tokens as a multiple of "
                f"sequence_length * num_processes = {sequence_length * processes}.",
            )
        cut = (rows, processes, self.launch.micro_batch_rows)
        return Batching(
            rows_per_step=rows,
            micro_batch_rows=micro_batch_rows_used(*cut),
            accumulation_steps=accumulation_steps(*cut),
            num_steps=num_steps(num_rows, rows),
        )

    def layout(self, batching: Batching) -> Layout:
        """Plain data parallelism keeps no sharded state, so its checkpoints fit any world size."""
        off = self.deepspeed.zero_stage == "off"
        return Layout(
            zero_stage=self.deepspeed.zero_stage,
            num_processes=1 if off else self.launch.world_size,
            precision=self.recipe.precision,
            num_steps=batching.num_steps,
            rows_per_step=batching.rows_per_step,
        )

    def write(self, path: Path) -> None:
        write_json_atomic(path, self)

    @classmethod
    def read(cls, path: Path) -> TrainJob:
        return cls.model_validate_json(path.read_text())
