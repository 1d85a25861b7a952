"""Pico models and packs for tests of training: a few thousand parameters, rows of 16 tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cpt_residual.config.schema import Architecture, DeepSpeed, Launch, TrainRecipe
from cpt_residual.data.packing.pack_format import PackWriter
from cpt_residual.data.packing.pack_ledger import (
    FORMAT_VERSION,
    PackLedger,
    SourceLedger,
    write_ledger,
)
from cpt_residual.data.packing.row_counts import SpecialIds
from cpt_residual.data.packing.rows import LOSS, PADDING, START, Row
from cpt_residual.modeling.initialise import write_initial_model
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.train.job import TrainJob

VOCAB_SIZE = 280
PICO = Architecture(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.1,
)
LENGTH = 16
_TEXTS = [f"the {a} of {b} is {c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]


def write_model(folder: Path, *, seed: int = 0, architecture: Architecture = PICO) -> Path:
    """A model directory with random weights."""
    write_initial_model(folder, architecture=architecture, texts=_TEXTS, seed=seed)
    return folder


def write_pack(
    folder: Path,
    model: Path,
    *,
    num_rows: int = 22,
    length: int = LENGTH,
    last: int | None = None,
    seed: int = 0,
) -> Path:
    """Random documents of 3 to 9 tokens; the last row holds `last` tokens (half of a row)."""
    last = length // 2 if last is None else last
    random = np.random.default_rng(seed)
    tokens = 0
    special = SpecialIds(bos=None, eos=1, pad=0)
    with PackWriter(folder, sequence_length=length, num_sources=1, special=special) as writer:
        for number in range(num_rows):
            row = _row(random, length, real=last if number == num_rows - 1 else length)
            tokens += row.num_tokens
            writer.append(row, 0)
        digest = writer.finish()
    write_ledger(
        folder,
        PackLedger(
            format_version=FORMAT_VERSION,
            num_rows=num_rows,
            sequence_length=length,
            token_budget=tokens,
            tokens=tokens,
            loss_tokens=tokens,
            padding=num_rows * length - tokens,
            repeat=False,
            seed=seed,
            bos_id=None,
            eos_id=1,
            pad_id=0,
            tokenizer_map_hash=token_map_hash(load_tokenizer(model)),
            rows_sha256=digest,
            marks=(),
            phases=(),
            sources=(_books(num_rows=num_rows, length=length, tokens=tokens),),
        ),
    )
    return folder


def _books(*, num_rows: int, length: int, tokens: int) -> SourceLedger:
    """One source that gave all rows; what no training looks at is 0."""
    fields = SourceLedger.model_fields.items()
    counts = {name: 0 for name, field in fields if field.is_required()}
    named = {"corpus": "text", "format": "text", "packing": "concat_chunk", "share": 1.0}
    padding = num_rows * length - tokens
    given = {"rows": num_rows, "tokens": tokens, "loss_tokens": tokens, "padding": padding}
    return SourceLedger.model_validate({**counts, **named, **given})


def _row(random: np.random.Generator, length: int, *, real: int) -> Row:
    # Few distinct ids, each following from the one before: something that can be learnt.
    first = random.integers(5, 40, size=length)
    ids = np.where(random.random(length) < 0.8, 5 + (7 * np.arange(length) + first[0]) % 40, first)
    flags = np.full(length, LOSS, dtype=np.uint8)
    column = 0
    while column < real:
        flags[column] = START
        column += int(random.integers(3, 10))
    ids = ids.astype(np.uint32)
    if real < length:
        ids[real:], flags[real:] = 0, PADDING
        flags[real] = PADDING | START
    return Row(ids=ids, flags=flags, num_tokens=real)


def recipe(**changes: object) -> TrainRecipe:
    """4 rows a step, a step size that moves a pico model."""
    values: dict[str, object] = {
        "stage": "cpt",
        "pack": "text",
        "global_batch_tokens": 4 * LENGTH,
        "learning_rate": 1.0e-2,
        "warmup_steps": 2,
    }
    return TrainRecipe.model_validate(values | changes)


def job(
    folder: Path,
    model: Path,
    pack: Path,
    *,
    launch: Mapping[str, object] | None = None,
    zero_stage: object = "off",
    **changes: object,
) -> TrainJob:
    """A training of `model` on `pack` with everything it writes below `folder`."""
    settings: dict[str, object] = {"device": "cpu", "micro_batch_rows": 2}
    return TrainJob(
        start=model,
        pack=pack,
        tokenizer=model,
        out=folder / "out",
        scratch=folder / "scratch",
        recipe=recipe(**changes),
        seed=3,
        launch=Launch.model_validate(settings | dict(launch or {})),
        deepspeed=DeepSpeed.model_validate({"zero_stage": zero_stage}),
    )
