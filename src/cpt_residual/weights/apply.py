"""theta_target + alpha * residual, streamed shard by shard (Jindal et al. 2024, eq. 2).

Guarantee: every element is the float64 value of the formula, rounded once to the target's dtype;
alpha = 0 gives the target's weight files byte for byte; shard files, index, names and metadata are
the target's. Memory: a few blocks per thread. Price: one read of target and residual, one write.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpt_residual.core.disk import check_free_space
from cpt_residual.errors import CompatibilityError
from cpt_residual.weights import arithmetic, chat_contract
from cpt_residual.weights.checkpoint import INDEX_FILE, Checkpoint
from cpt_residual.weights.compatibility import (
    Side,
    require_match,
    require_same_tokens,
    side_of,
)
from cpt_residual.weights.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.residual_format import ResidualArtifact
from cpt_residual.weights.writer import ShardWriter, fresh_directory


@dataclass(frozen=True)
class ApplyReport:
    """Norms are Euclidean over all parameters, tied tensors once.

    residual_norm: of alpha * residual; relative_norm: residual_norm / target_norm;
    cosine: between target and alpha * residual; lost_share: elements with alpha * residual != 0
    that rounding left at the target's value, over all such elements.
    """

    alpha: float
    num_parameters: int
    target_norm: float
    residual_norm: float
    relative_norm: float | None
    cosine: float | None
    lost_share: float
    eos_token_ids: tuple[int, ...]


@dataclass
class _Sums:
    target_squared: float = 0.0
    target_dot_residual: float = 0.0
    num_nonzero: int = 0
    num_lost: int = 0

    def add(self, other: _Sums) -> None:
        self.target_squared += other.target_squared
        self.target_dot_residual += other.target_dot_residual
        self.num_nonzero += other.num_nonzero
        self.num_lost += other.num_lost


def apply(
    target: Checkpoint,
    residual: ResidualArtifact,
    out: Path,
    *,
    alpha: float,
    token_map_hash: str,
    streaming: Streaming = DEFAULT_STREAMING,
) -> ApplyReport:
    """Writes the merged model directory `out`, with the chat contract (see chat_contract).

    `token_map_hash` is that of the target's id-to-token map. Raises CompatibilityError for a
    target that the residual does not fit, and for values that are not finite; `out` is then
    untouched. `chat_contract.verify_stops(out)` is the caller's next step.
    """
    if not math.isfinite(alpha):
        raise CompatibilityError(
            f"alpha is {alpha}", remedy="Give a finite number; 1.0 is the paper."
        )
    _require_fit(target, residual)
    require_same_tokens(
        "residual",
        target.role,
        hashes=(residual.manifest.token_map_hash, token_map_hash),
        differing=(),
    )
    require_equal_aliases(target, threads=streaming.threads)
    with fresh_directory(out) as folder:
        check_free_space(folder, target.num_bytes)
        eos = chat_contract.install(
            instruct_side=residual.instruct_folder,
            base_eos=residual.manifest.base.eos_token_ids,
            target=target.path,
            out=folder,
        )
        sums = _write_shards(target, residual, folder, alpha=alpha, streaming=streaming)
        if target.index is not None:
            (folder / INDEX_FILE).write_bytes(target.index)
    scaled_squared = (alpha * residual.manifest.residual_norm) ** 2
    return ApplyReport(
        alpha=alpha,
        num_parameters=target.num_parameters,
        target_norm=math.sqrt(sums.target_squared),
        residual_norm=math.sqrt(scaled_squared),
        relative_norm=arithmetic.relative_norm(scaled_squared, sums.target_squared),
        cosine=arithmetic.cosine(
            alpha * sums.target_dot_residual, sums.target_squared, scaled_squared
        ),
        lost_share=sums.num_lost / sums.num_nonzero if alpha and sums.num_nonzero else 0.0,
        eos_token_ids=tuple(eos),
    )


def _require_fit(target: Checkpoint, residual: ResidualArtifact) -> None:
    shapes = {name: record.shape for name, record in residual.manifest.tensors.items()}
    require_match(
        Side(label="residual", shapes=shapes, facts=residual.manifest.facts), side_of(target)
    )


def _write_shards(
    target: Checkpoint,
    residual: ResidualArtifact,
    folder: Path,
    *,
    alpha: float,
    streaming: Streaming,
) -> _Sums:
    total, num_done, broken = _Sums(), 0, list[str]()
    num_elements = sum(entry.num_elements for entry in target.tensors.values())
    with ExitStack() as stack:
        target_reader = stack.enter_context(ShardReader(target.shards))
        residual_reader = stack.enter_context(ShardReader(residual.shards))
        for shard in target.shards:
            writer = ShardWriter(
                folder / shard.name, header=shard.header, num_bytes=shard.num_bytes
            )

            def merge(block: Block, writer: ShardWriter = writer) -> tuple[Block, _Sums, str]:
                owner = Block(target.aliases.get(block.name, block.name), block.start, block.stop)
                entry = target.tensors[block.name]
                target_block = target_reader.read(entry, block.start, block.stop)
                delta = residual_reader.read(residual.tensors[owner.name], block.start, block.stop)
                merged = arithmetic.add_scaled(
                    target_block, delta, alpha, residual.corrections(owner)
                )
                writer.write(entry, block.start, merged)
                line = _broken(block.name, target_block, delta, merged)
                return block, _block_sums(target_block, delta, merged), line

            with writer:
                for block, sums, line in map_in_order(
                    merge, blocks_of(shard.tensors), threads=streaming.threads
                ):
                    if block.name not in target.aliases:
                        total.add(sums)
                    broken.extend([line] if line else [])
                    num_done += block.num_elements
                    streaming.progress(num_done, num_elements, "parameters")
    require_finite(broken)
    return total


def _block_sums(target: Tensor, delta: Tensor, merged: Tensor) -> _Sums:
    moves = delta != 0
    return _Sums(
        target_squared=arithmetic.squared_norm(target),
        target_dot_residual=arithmetic.dot(target, delta),
        num_nonzero=int(torch.count_nonzero(moves)),
        num_lost=int(torch.count_nonzero(moves & (merged == target))),
    )


def _broken(name: str, target: Tensor, delta: Tensor, merged: Tensor) -> str:
    if bool(torch.isfinite(merged).all()):
        return ""
    for role, values in (("target", target), ("residual", delta)):
        if not bool(torch.isfinite(values).all()):
            return f"{name}: NaN or Inf in {role}"
    return f"{name}: target + alpha * residual is larger than {merged.dtype} can hold"
