"""Whether what `weights.py` measures is right: bytes against bytes, numbers against float64."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from weights_family import Family, widened

from cpt_residual.weights.io.checkpoint import Checkpoint, TensorEntry, open_checkpoint

_NUM_SAMPLES = 200
_SAMPLE_ELEMENTS = 1 << 16

Doubles = npt.NDArray[np.float64]


def weights_hash(folder: Path) -> str:
    """Hash of the names and bytes of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sampled_errors(family: Family, merged: Path, *, alpha: float) -> dict[str, Any]:
    """Compares blocks of a merged bf16 model with target + alpha * (instruct - base) in float64,
    rounded once to bf16: how many elements were compared, and how many differ. Every tensor gets a
    block; further ones are drawn."""
    folders = {"target": family.base_cpt, "base": family.base, "instruct": family.instruct}
    inputs = {role: open_checkpoint(path, role=role) for role, path in folders.items()}
    output = open_checkpoint(merged, role="merged")
    rng = np.random.default_rng(0)
    names = sorted(inputs["target"].unique_tensors)
    missing = [name for name in names if name not in output.tensors]
    num_drawn = max(0, _NUM_SAMPLES - len(names))
    num_elements = num_wrong = 0
    for name in [*names, *rng.choice(names, num_drawn).tolist()]:
        if name in missing:
            continue
        total = inputs["target"].tensors[name].num_elements
        start = int(rng.integers(0, max(1, total - _SAMPLE_ELEMENTS)))
        count = min(_SAMPLE_ELEMENTS, total - start)
        target, base, instruct = (_read(model, name, start, count) for model in inputs.values())
        expected = rounded_to_bf16(target + alpha * (instruct - base))
        num_elements += count
        num_wrong += int(np.count_nonzero(expected != _read(output, name, start, count)))
    return {"compared_elements": num_elements, "wrong_elements": num_wrong, "missing": missing}


def rounded_to_bf16(exact: Doubles) -> Doubles:
    """float64 values rounded once to the nearest bf16 value, ties to even; for the normal range."""
    bits = exact.view(np.uint64)
    shift = np.uint64(52 - 7)  # mantissa bits of float64 and of bf16
    even = (bits >> shift) & np.uint64(1)
    half = (np.uint64(1) << (shift - np.uint64(1))) - np.uint64(1)
    return (((bits + half + even) >> shift) << shift).view(np.float64)


def _read(model: Checkpoint, name: str, start: int, count: int) -> Doubles:
    entry: TensorEntry = model.tensors[name]
    if entry.dtype != "BF16":
        raise ValueError(f"{model.path}: {name} is {entry.dtype}, not bf16")
    offset = entry.offset + start * entry.item_size
    raw = np.fromfile(model.path / entry.shard, dtype=np.uint16, count=count, offset=offset)
    return widened(raw).astype(np.float64)
