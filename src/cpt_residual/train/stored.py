"""Inspection and verification of the model directories of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from cpt_residual.errors import ArtifactError, WorkerError
from cpt_residual.weights.io.checkpoint import Checkpoint, open_checkpoint
from cpt_residual.weights.io.shard_header import Shape
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.maths.torch_bridge import TORCH_DTYPES
from cpt_residual.weights.tokens.matching import by_class_names


def open_start(folder: Path) -> Checkpoint:
    """The weights of the start model, an artifact, by the names of its class's parameters; a
    released model's shards are links."""
    return by_class_names(open_checkpoint(folder, role="start model", links_allowed=True))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most parameters of the start model (by number of elements)."""
    counts: Counter[DtypeName] = Counter()
    for _, entry in sorted(open_start(folder).tensors.items()):
        counts[entry.dtype] += entry.num_elements
    return TORCH_DTYPES[counts.most_common(1)[0][0]]


def verify_weights(out: Path, expected: Mapping[str, Shape], dtype: torch.dtype) -> None:
    """Raise WorkerError unless the files hold exactly the expected tensors, by the names of the
    class's parameters, in `dtype`.

    Some set-ups (ZeRO-3 without a gather) end with exit code 0 and empty or no weights."""
    try:
        found = by_class_names(open_checkpoint(out, role="trained model")).tensors
    except ArtifactError as error:
        raise _not_whole([error.what, *error.problems]) from error
    problems = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    problems += [
        f"{name}: not part of the start model" for name in sorted(found.keys() - expected.keys())
    ]
    for name in sorted(expected.keys() & found.keys()):
        entry = found[name]
        if entry.shape != expected[name] or 0 in entry.shape:
            problems.append(f"{name}: shape {entry.shape}, wanted {expected[name]}")
        if TORCH_DTYPES[entry.dtype] != dtype:
            problems.append(f"{name}: {TORCH_DTYPES[entry.dtype]}, wanted {dtype}")
    if problems:
        raise _not_whole(problems)


def _not_whole(problems: list[str]) -> WorkerError:
    return WorkerError(
        "the trained model was not written whole",
        problems=problems,
        remedy="Nothing was published. This is a defect: please report it with these lines.",
    )
