"""Estimated cost of compute or apply (`--dry-run`), from headers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.base_model import Frozen
from cpt_residual.config.merging import MergeRecipe, Storage
from cpt_residual.core.disk import check_free_space, free_bytes
from cpt_residual.core.rates import (
    MODEL_CHECK_MEMORY,
    WEIGHT_BYTES_PER_SECOND,
    WEIGHTS_MEMORY_PER_OUTPUT,
    WEIGHTS_MEMORY_PER_THREAD,
    WEIGHTS_PROCESS_MEMORY,
)
from cpt_residual.methods.method import Method
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import Streaming
from cpt_residual.weights.io.shard_header import Shape
from cpt_residual.weights.merge.merge_pass import ALPHAS_AT_ONCE


class WorkPlan(Frozen):
    """Bytes as exact as headers allow; memory and seconds are estimates. memory_bytes: peak while
    merging; verify_bytes: peak of the check afterwards, 0 without. checks: what has been shown."""

    outputs: list[str]
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    verify_bytes: int = 0
    seconds: float
    bytes_per_second: int = WEIGHT_BYTES_PER_SECOND
    free_bytes: int
    checks: list[str]
    upload: str | None = None

    def with_scratch(self, num_bytes: int) -> WorkPlan:
        """The same plan with a merged adapter of `num_bytes` written and read beside it."""
        if not num_bytes:
            return self
        return self.model_copy(
            update={
                "read_bytes": self.read_bytes + num_bytes,
                "write_bytes": self.write_bytes + num_bytes,
                "seconds": self.seconds + 2 * num_bytes / WEIGHT_BYTES_PER_SECOND,
                "checks": [*self.checks, "adapter"],
            }
        )


def plan_of_compute(
    base: Checkpoint, instruct: Checkpoint, out: Path, *, storage: Storage, streaming: Streaming
) -> WorkPlan:
    """Both models are read twice, once for their sha256, the output once for its own.
    DiskSpaceError when there is no room."""
    write = (2 if storage.dtype == "bf16" else 4) * instruct.num_parameters
    read = 2 * (base.num_bytes + instruct.num_bytes) + write
    check_free_space(out, write)
    memory = _memory(streaming)
    if storage.low_rank is not None:
        shapes = (entry.shape for entry in instruct.unique_tensors.values())
        memory += _method_bytes(shapes, storage.low_rank, streaming)
    return WorkPlan(
        outputs=[str(out)],
        read_bytes=read,
        write_bytes=write,
        memory_bytes=memory,
        seconds=(read + write) / WEIGHT_BYTES_PER_SECOND,
        free_bytes=free_bytes(out),
        checks=["headers", "tokens", "shapes", "room on the disk"],
    )


@dataclass(frozen=True)
class MergeWork:
    """What a merge handles. input_bytes: what one pass reads; hashed_bytes: of the inputs whose
    sha256 `verify` takes; output_bytes: of one output; shapes: of the target's tensors."""

    input_bytes: int
    hashed_bytes: int
    output_bytes: int
    shapes: tuple[Shape, ...]


def plan_of_merge(
    work: MergeWork,
    outputs: list[Path],
    *,
    recipe: MergeRecipe,
    verify: bool,
    streaming: Streaming,
) -> WorkPlan:
    """One read of every input, more where the recipe measures first, and one for its sha256 with
    `verify`; one write per output, read back by `verify`. DiskSpaceError when there is no room."""
    write = work.output_bytes * len(outputs)
    read = recipe.num_reads * work.input_bytes + (2 * write + work.hashed_bytes if verify else 0)
    memory = _memory(streaming) + (MODEL_CHECK_MEMORY if verify else 0)
    memory += (
        WEIGHTS_MEMORY_PER_OUTPUT * streaming.threads * (min(len(outputs), ALPHAS_AT_ONCE) - 1)
    )
    memory += _method_bytes(work.shapes, recipe.method, streaming)
    check_free_space(outputs[0], write)
    return WorkPlan(
        outputs=[str(path) for path in outputs],
        read_bytes=read,
        write_bytes=write,
        memory_bytes=memory,
        verify_bytes=MODEL_CHECK_MEMORY + work.output_bytes if verify else 0,
        seconds=(read + write) / WEIGHT_BYTES_PER_SECOND,
        free_bytes=free_bytes(outputs[0]),
        checks=["headers", "shapes", "tokens", "recipe", "outputs", "room on the disk"],
    )


def _memory(streaming: Streaming) -> int:
    return WEIGHTS_PROCESS_MEMORY + WEIGHTS_MEMORY_PER_THREAD * streaming.threads


def _method_bytes(shapes: Iterable[Shape], method: Method, streaming: Streaming) -> int:
    """Of the costliest tensor."""
    return max(
        (method.memory_bytes(shape, threads=streaming.threads) for shape in shapes), default=0
    )
