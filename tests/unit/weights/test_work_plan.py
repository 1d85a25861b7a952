"""What a plan says before the work, against what the work takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.methods.low_rank import LowRank, low_rank, low_rank_rows
from cpt_residual.weights.apply.dry_run import MergeWork, WorkPlan, plan_of_merge
from cpt_residual.weights.io.reader import Streaming

_SMALL_THINGS = 26 * 2**20  # rows in float64, some at a time; beside the factors by contract


def planned(out: Path, method: LowRank | None, *shapes: tuple[int, ...]) -> WorkPlan:
    work = MergeWork(input_bytes=30, hashed_bytes=20, output_bytes=10, shapes=shapes)
    recipe = MergeRecipe(method=method) if method else MergeRecipe()
    return plan_of_merge(work, [out], recipe=recipe, verify=True, streaming=Streaming(threads=2))


@pytest.mark.parametrize("shape", [(3000, 400), (400, 3000), (900, 900)])
@pytest.mark.parametrize("method", [LowRank(rank=8), LowRank(explained_variance=1.0)])
def test_low_rank_counts_its_factors(
    tmp_path: Path, shape: tuple[int, int], method: LowRank
) -> None:
    plain = planned(tmp_path / "o", None, shape, (7,))
    added = planned(tmp_path / "o", method, shape, (7,)).memory_bytes - plain.memory_bytes
    assert plain.memory_bytes == planned(tmp_path / "o", None, (7,)).memory_bytes
    generator = np.random.default_rng(0)
    tracemalloc.start()
    try:
        matrix = generator.standard_normal(shape, dtype=np.float32)
        factors = low_rank(matrix, rank=method.rank, explained_variance=method.explained_variance)
        low_rank_rows(factors.left, factors.right, 0, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - _SMALL_THINGS <= added <= 8 * peak
    assert planned(tmp_path / "o", method, (7,)).memory_bytes == plain.memory_bytes


def test_the_sha256_of_the_inputs_is_read_for(tmp_path: Path) -> None:
    assert planned(tmp_path / "o", None).read_bytes == 30 + 20 + 2 * 10
