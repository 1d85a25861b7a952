"""Values derived from the configuration; computed here and stored nowhere."""

from __future__ import annotations

from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import Architecture, TrainRecipe


def rows_per_step(recipe: TrainRecipe, pack: Pack) -> int:
    """Rows of one optimizer step over all ranks and accumulation (the checks make it exact)."""
    return recipe.global_batch_tokens // pack.sequence_length


def micro_batch_rows_used(rows_per_step: int, num_processes: int, micro_batch_rows: int) -> int:
    """Rows of one forward pass on one rank: the largest divisor of a rank's rows per step that
    is at most `micro_batch_rows`, so that every micro-batch of a step has the same size.

    `rows_per_step` must be a multiple of `num_processes` (the checks see to it).
    """
    rows_per_rank = rows_per_step // num_processes
    limit = min(micro_batch_rows, rows_per_rank)
    return next(rows for rows in range(limit, 0, -1) if rows_per_rank % rows == 0)


def accumulation_steps(rows_per_step: int, num_processes: int, micro_batch_rows: int) -> int:
    """Forward passes of one rank per optimizer step, with `micro_batch_rows_used` rows each."""
    used = micro_batch_rows_used(rows_per_step, num_processes, micro_batch_rows)
    return rows_per_step // num_processes // used


def num_steps(num_rows: int, rows_per_step: int) -> int:
    """Optimizer steps of one pass over a pack; the last step may have fewer rows."""
    return -(-num_rows // rows_per_step)


def num_parameters(architecture: Architecture) -> int:
    """Exact parameter count of a Llama or Qwen2 model, tied tensors counted once."""
    hidden = architecture.hidden_size
    query = hidden
    key_value = hidden // architecture.num_heads * architecture.num_key_value_heads
    attention = hidden * (2 * query + 2 * key_value)
    if architecture.model_type == "qwen2":
        attention += query + 2 * key_value  # Qwen2 has biases on q, k and v
    mlp = 3 * hidden * architecture.intermediate_size
    norms = 2 * hidden
    embeddings = architecture.vocab_size * hidden * (1 if architecture.tie_word_embeddings else 2)
    return architecture.num_layers * (attention + mlp + norms) + embeddings + hidden
