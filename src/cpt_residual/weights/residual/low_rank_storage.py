"""Low-rank factors of residual matrices, kept on disk until stored.

RE-Adapt (Fleshman and Van Durme 2024) found a truncation at half of the variance to cost nothing
at 7B. Price: one matrix in fp32 and its Gram matrix at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_residual.methods.low_rank import LowRank, LowRankFactors, low_rank_rows
from cpt_residual.weights.io.reader import Block, Streaming, blocks_of, map_in_order, require_finite
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.io.writer import ShardWriter
from cpt_residual.weights.maths.arithmetic import Proof
from cpt_residual.weights.maths.subtraction import Tally, lossy_tally, store_exactly
from cpt_residual.weights.residual.open_delta import OpenPair
from cpt_residual.weights.residual.residual_format import LEFT, RIGHT

_SCRATCH = ".factors"


@dataclass(frozen=True)
class Factored:
    """One matrix's factors in scratch files, and how far they are from the exact difference."""

    rank: int
    tally: Tally
    files: Mapping[str, Path]

    def copy_to(self, name: str, places: Mapping[str, tuple[ShardWriter, TensorEntry]]) -> None:
        """Writes the factors where `places` says and removes the scratch files."""
        for side, path in self.files.items():
            writer, entry = places[name + side]
            writer.write(entry, 0, np.fromfile(path, dtype=np.float32))
            path.unlink()


def factor_matrices(
    pair: OpenPair, folder: Path, spec: LowRank, *, streaming: Streaming
) -> dict[str, Factored]:
    """Factors of every matrix of instruct - base, by name. Vectors are left out, and where
    instruct has tokens of its own the vocabulary tensors: their rows are no differences."""
    scratch = folder / _SCRATCH
    scratch.mkdir()
    factored: dict[str, Factored] = {}
    matrices = [
        entry
        for entry in pair.instruct.unique_tensors.values()
        if len(entry.shape) == 2 and entry.num_elements and entry.name not in pair.aligned
    ]
    num_all = sum(entry.num_elements for entry in matrices)
    num_done = 0
    for number, entry in enumerate(matrices):
        matrix, tally = _difference(pair, entry, threads=streaming.threads)
        require_finite(tally.broken(entry.name))
        factors = spec.factors(matrix)
        del matrix
        files = {side: scratch / f"{number}{side}" for side in (LEFT, RIGHT)}
        factors.left.tofile(files[LEFT])
        factors.right.tofile(files[RIGHT])
        _measure(pair, entry, factors, tally, threads=streaming.threads)
        factored[entry.name] = Factored(factors.rank, tally, files)
        num_done += entry.num_elements
        streaming.progress(num_done, num_all, "parameters factored")
    return factored


def remove_scratch(folder: Path) -> None:
    """Removes what `factor_matrices` has left in `folder`."""
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)


def _difference(
    pair: OpenPair, entry: TensorEntry, *, threads: int
) -> tuple[npt.NDArray[np.float32], Tally]:
    flat, total = np.empty(entry.num_elements, dtype=np.float32), Tally()

    def fill(block: Block) -> Tally:
        return store_exactly(*pair.read(block), entry.dtype, flat[block.start : block.stop])[0]

    for tally in map_in_order(fill, blocks_of([entry]), threads=threads):
        total.add(tally)
    total.num_rounded = total.max_ulps = total.num_zero_signs = total.num_wrong = 0
    return flat.reshape(entry.shape), total


def _measure(
    pair: OpenPair, entry: TensorEntry, factors: LowRankFactors, tally: Tally, *, threads: int
) -> None:
    """Adds to `tally` how far base + left @ right is from instruct."""

    def compare(block: Block) -> tuple[Proof, float]:
        stored = low_rank_rows(factors.left, factors.right, block.start, block.stop)
        return lossy_tally(*pair.read(block), stored, entry.dtype)

    for proof, error_squared in map_in_order(compare, blocks_of([entry]), threads=threads):
        tally.num_wrong += proof.num_wrong
        tally.num_zero_signs += proof.num_zero_signs
        tally.max_ulps = max(tally.max_ulps, proof.max_ulps)
        tally.error_squared += error_squared
