"""theta_instruct - theta_base, streamed to disk and proven while it is written.

Guarantee: residual + corrections is the exact difference, so base + residual, rounded once, is
instruct bit for bit in every tensor of any dtype, and every merge rounds the true sum.
Price: reads both models twice (once for their sha256), writes 4 bytes per parameter, memory of a
few blocks per thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.hashing import file_sha256
from cpt_residual.weights import arithmetic
from cpt_residual.weights.chat_contract import copy_instruct_side, eos_token_ids
from cpt_residual.weights.checkpoint import Checkpoint, TensorEntry
from cpt_residual.weights.compatibility import require_match, side_of
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
from cpt_residual.weights.residual_format import (
    INSTRUCT_FOLDER,
    MANIFEST_FILE,
    CorrectionsWriter,
    ModelRecord,
    ResidualManifest,
    TensorRecord,
)
from cpt_residual.weights.writer import ShardWriter, fresh_directory, layout


@dataclass
class _Sums:
    """Sums over the elements of a block, a tensor, or all tensors."""

    base_squared: float = 0.0
    instruct_squared: float = 0.0
    residual_squared: float = 0.0
    base_dot_residual: float = 0.0
    num_rounded: int = 0
    max_ulps: int = 0
    num_zero_signs: int = 0
    num_wrong: int = 0

    def add(self, other: _Sums) -> None:
        self.base_squared += other.base_squared
        self.instruct_squared += other.instruct_squared
        self.residual_squared += other.residual_squared
        self.base_dot_residual += other.base_dot_residual
        self.num_rounded += other.num_rounded
        self.max_ulps = max(self.max_ulps, other.max_ulps)
        self.num_zero_signs += other.num_zero_signs
        self.num_wrong += other.num_wrong

    @property
    def bit_exact(self) -> bool:
        return self.num_wrong == 0 and self.num_zero_signs == 0

    def broken(self, name: str) -> list[str]:
        """Lines on values that are not finite numbers."""
        if not math.isfinite(self.base_squared):
            return [f"{name}: NaN or Inf in base"]
        if not math.isfinite(self.instruct_squared):
            return [f"{name}: NaN or Inf in instruct"]
        if not math.isfinite(self.residual_squared):
            return [f"{name}: instruct - base is larger than fp32 can hold"]
        return []


def compute(
    base: Checkpoint,
    instruct: Checkpoint,
    out: Path,
    *,
    token_map_hash: str,
    streaming: Streaming = DEFAULT_STREAMING,
) -> ResidualManifest:
    """Writes the residual directory `out` (see residual_format) and returns its manifest.

    `token_map_hash` is the hash of the id-to-token map that both models share; the caller has
    compared them. Raises CompatibilityError for models that do not belong together or hold NaN or
    Inf; `out` is then untouched.
    """
    require_match(side_of(base), side_of(instruct))
    for checkpoint in (base, instruct):
        require_equal_aliases(checkpoint, threads=streaming.threads)
    records = [_model_record(model, streaming.threads) for model in (base, instruct)]
    with fresh_directory(out) as folder:
        check_free_space(folder, 4 * instruct.num_parameters)
        tensors, total = _write_tensors(base, instruct, folder, streaming=streaming)
        copy_instruct_side(instruct.path, folder / INSTRUCT_FOLDER)
        manifest = ResidualManifest(
            facts=instruct.facts,
            token_map_hash=token_map_hash,
            num_parameters=instruct.num_parameters,
            base=records[0],
            instruct=records[1],
            tied=dict(instruct.aliases),
            base_norm=math.sqrt(total.base_squared),
            instruct_norm=math.sqrt(total.instruct_squared),
            residual_norm=math.sqrt(total.residual_squared),
            cosine_base_residual=arithmetic.cosine(
                total.base_dot_residual, total.base_squared, total.residual_squared
            ),
            bit_exact=total.bit_exact,
            num_rounded=total.num_rounded,
            max_ulps=total.max_ulps,
            num_zero_signs=total.num_zero_signs,
            tensors=tensors,
        )
        write_json_atomic(folder / MANIFEST_FILE, manifest)
    return manifest


def _model_record(model: Checkpoint, threads: int) -> ModelRecord:
    hashes = map_in_order(lambda shard: file_sha256(shard.path), model.shards, threads=threads)
    return ModelRecord(
        shards=dict(zip((shard.name for shard in model.shards), hashes, strict=True)),
        eos_token_ids=eos_token_ids(model.path),
    )


def _write_tensors(
    base: Checkpoint,
    instruct: Checkpoint,
    folder: Path,
    *,
    streaming: Streaming,
) -> tuple[dict[str, TensorRecord], _Sums]:
    """All shards of the residual; returns the tensors' records and the sums over all tensors."""
    sums = {name: _Sums() for name in instruct.unique_tensors}
    starts: dict[str, int] = {}
    total, num_done = _Sums(), 0
    with ExitStack() as stack:
        readers = [stack.enter_context(ShardReader(model.shards)) for model in (base, instruct)]
        places = _open_writers(instruct, folder, stack)
        corrections = CorrectionsWriter(folder)

        def subtract(block: Block) -> tuple[Block, _Sums, arithmetic.Corrections]:
            base_block, instruct_block = (
                reader.read(model.tensors[block.name], block.start, block.stop)
                for reader, model in zip(readers, (base, instruct), strict=True)
            )
            difference, remainder, proof = arithmetic.residual(base_block, instruct_block)
            writer, entry = places[block.name]
            writer.write(entry, block.start, difference)
            return block, _block_sums(base_block, instruct_block, difference, proof), remainder

        blocks = blocks_of(_in_file_order(instruct))
        for block, block_sums, remainder in map_in_order(
            subtract, blocks, threads=streaming.threads
        ):
            starts.setdefault(block.name, corrections.count)
            corrections.append(remainder, offset=block.start)
            sums[block.name].add(block_sums)
            num_done += block.num_elements
            streaming.progress(num_done, instruct.num_parameters, "parameters")
        corrections.finish()
    require_finite(line for name, tensor in sums.items() for line in tensor.broken(name))
    for tensor in sums.values():
        total.add(tensor)
    records = {
        name: _tensor_record(places[name][1], base, instruct, tensor, starts[name])
        for name, tensor in sums.items()
    }
    return records, total


def _block_sums(
    base: Tensor, instruct: Tensor, difference: Tensor, proof: arithmetic.Proof
) -> _Sums:
    return _Sums(
        base_squared=arithmetic.squared_norm(base),
        instruct_squared=arithmetic.squared_norm(instruct),
        residual_squared=arithmetic.squared_norm(difference),
        base_dot_residual=arithmetic.dot(base, difference),
        num_rounded=proof.num_rounded,
        max_ulps=proof.max_ulps,
        num_zero_signs=proof.num_zero_signs,
        num_wrong=proof.num_wrong,
    )


def _open_writers(
    instruct: Checkpoint, folder: Path, stack: ExitStack
) -> dict[str, tuple[ShardWriter, TensorEntry]]:
    """One reserved fp32 shard per shard of instruct; where each tensor goes."""
    places: dict[str, tuple[ShardWriter, TensorEntry]] = {}
    kept = [
        [entry for entry in shard.tensors if entry.name not in instruct.aliases]
        for shard in instruct.shards
    ]
    kept = [entries for entries in kept if entries]
    for number, entries in enumerate(kept, start=1):
        name = f"residual-{number:05d}-of-{len(kept):05d}.safetensors"
        header, placed = layout(
            name, [(entry.name, "F32", entry.shape) for entry in entries], {"format": "pt"}
        )
        num_bytes = len(header) + sum(entry.num_bytes for entry in placed)
        writer = stack.enter_context(ShardWriter(folder / name, header=header, num_bytes=num_bytes))
        places.update({entry.name: (writer, entry) for entry in placed})
    return places


def _in_file_order(model: Checkpoint) -> Iterator[TensorEntry]:
    for shard in model.shards:
        yield from (entry for entry in shard.tensors if entry.name not in model.aliases)


def _tensor_record(
    placed: TensorEntry, base: Checkpoint, instruct: Checkpoint, sums: _Sums, start: int
) -> TensorRecord:
    return TensorRecord(
        shard=placed.shard,
        shape=placed.shape,
        base_dtype=base.tensors[placed.name].dtype,
        instruct_dtype=instruct.tensors[placed.name].dtype,
        base_norm=math.sqrt(sums.base_squared),
        instruct_norm=math.sqrt(sums.instruct_squared),
        residual_norm=math.sqrt(sums.residual_squared),
        bit_exact=sums.bit_exact,
        num_rounded=sums.num_rounded,
        max_ulps=sums.max_ulps,
        num_zero_signs=sums.num_zero_signs,
        corrections_start=start,
    )
