"""Rates and sizes behind all estimates: one number per kind of work, each with its source.

An estimate orders a queue, fills the plan and sizes SLURM requests; no result depends on one.
"measured" is on the 2-core machine of `benchmarks/` unless another is named.
"""

from __future__ import annotations

MIB = 2**20

# --- floating point operations per second ---------------------------------------------------------
CPU_FLOPS_PER_THREAD = 80e9
"""Measured: one AVX-512 core in fp32. Training on rows of 128 tokens; scoring and generation of a
model of 1.2M parameters reach 72e9."""

GPU_PEAK_FLOPS = 989e12
"""Public: NVIDIA H100 SXM data sheet, dense bf16. An A100 has 312e12: multiply times by three."""

GPU_TRAINING_MFU = 0.35
"""Assumed share of the peak in training with ZeRO; public reports range from 0.3 to 0.5."""

GPU_SCORING_MFU = 0.25
"""Assumed share of the peak when prompts and choices are scored in padded batches."""

GPU_SECONDS_PER_GENERATED_TOKEN = 0.03
"""Assumed: one step of Hugging Face `generate` for a whole batch. It is bound by kernel launches of
some thirty layers, not by arithmetic."""

# --- bytes per second -----------------------------------------------------------------------------
WEIGHT_BYTES_PER_SECOND = 600_000_000
"""Assumed: weights hashed, read and written, all together, as on a cloud disk. For a machine with a
faster one see benchmarks/results/weights_cold.json."""

GEOMETRY_BYTES_PER_SECOND = 240e6
"""Measured: norms and cosines of three fp32 models, all their bytes together."""

DOWNLOAD_BYTES_PER_SECOND = 50e6
"""Assumed: released models over 400 Mbit/s."""

LOCAL_TEXT_BYTES_PER_SECOND = 40e6
"""Measured: JSON lines read, judged and written."""

HUB_TEXT_BYTES_PER_SECOND = 5e6
"""Assumed: a streamed data set of the hub."""

CLOZE_TEXT_BYTES_PER_SECOND = 10e6
"""Measured: spans of a corpus and its references indexed."""

# --- others per second ----------------------------------------------------------------------------
ENCODED_TOKENS_PER_SECOND_AND_CORE = 600_000
"""Measured: English text with a BPE of 49,000 entries (benchmarks/results/data.json)."""

WORLD_DOCUMENTS_PER_SECOND = 25_000
"""Measured: documents and dialogues of the procedural world."""

RANDOM_PARAMETERS_PER_SECOND = 50e6
"""Measured: random weights drawn and written."""

# --- seconds whatever the size (measured) ---------------------------------------------------------
SECONDS_TO_TRAIN_TOKENIZER = 2.0
SECONDS_TO_START_TRAINING = 0.7
SECONDS_TO_START_RANKS = 12.0
SECONDS_TO_START_EVALUATION = 1.0
SECONDS_TO_CHECK_STOPS = 3.0
SECONDS_TO_LINK_MODEL = 1.0
SECONDS_TO_REPORT = 4.0
SECONDS_PER_TASK_DATA = 3.0

# --- memory of a process without its data (measured) ----------------------------------------------
TORCH_MEMORY = 600 * MIB
"""Python with torch and transformers."""

WEIGHTS_PROCESS_MEMORY = 260 * MIB
"""Interpreter, numpy, kernels and their compiler, token maps."""

WEIGHTS_MEMORY_PER_THREAD = 32 * MIB
"""Blocks of fp32 models; half of it of bf16 models."""

WEIGHTS_MEMORY_PER_OUTPUT = 8 * MIB
"""And thread, for every alpha beyond the first."""

WEIGHTS_MEMORY = WEIGHTS_PROCESS_MEMORY + WEIGHTS_MEMORY_PER_THREAD
"""The weights engine on one thread, whatever the size of the model. The check of a merged model
maps its file, which takes page cache only (measured: 290 MiB of its own, 577 MiB of model)."""

MODEL_CHECK_MEMORY = 500 * MIB
"""Torch and transformers, for the checks before and after a merge."""

EVALUATION_MEMORY = 900 * MIB
"""Torch, lm-eval and one batch."""

PACK_MEMORY = 500 * MIB
"""Interpreter, tokenizer and short documents that are encoded together."""

REPORT_MEMORY = 400 * MIB
