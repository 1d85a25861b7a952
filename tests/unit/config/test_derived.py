"""Derived numbers: batches that divide exactly, parameter counts that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.derived import (
    accumulation_steps,
    micro_batch_rows_used,
    num_parameters,
    num_steps,
    rows_per_step,
)
from cpt_residual.config.schema import Architecture, Experiment


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_micro_batches_make_up_the_step_exactly(
    rows_per_rank: int, num_processes: int, micro_batch_rows: int
) -> None:
    rows = rows_per_rank * num_processes
    used = micro_batch_rows_used(rows, num_processes, micro_batch_rows)
    accumulation = accumulation_steps(rows, num_processes, micro_batch_rows)
    assert used * accumulation * num_processes == rows
    assert used <= micro_batch_rows
    larger = [n for n in range(used + 1, micro_batch_rows + 1) if rows_per_rank % n == 0]
    assert not larger


@pytest.mark.parametrize(
    ("rows", "processes", "limit", "used"),
    [(16, 1, 8, 8), (16, 2, 8, 8), (12, 1, 8, 6), (7, 1, 4, 1)],
)
def test_the_largest_divisor_within_the_limit(
    rows: int, processes: int, limit: int, used: int
) -> None:
    assert micro_batch_rows_used(rows, processes, limit) == used


def test_rows_and_steps(tiny: Experiment) -> None:
    recipe = tiny.recipes["cpt"]
    assert rows_per_step(recipe, tiny.packs[recipe.pack]) == 16
    assert [num_steps(rows, 16) for rows in (1, 16, 17, 32)] == [1, 1, 2, 2]


def shape(**changes: object) -> Architecture:
    llama3_8b = {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    return Architecture.model_validate({**llama3_8b, **changes})


def test_parameter_counts_of_released_models() -> None:
    assert num_parameters(shape()) == 8_030_261_248
    qwen = shape(
        model_type="qwen2",
        vocab_size=151_936,
        hidden_size=1536,
        num_layers=28,
        num_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        tie_word_embeddings=True,
    )
    assert num_parameters(qwen) == 1_543_714_304
