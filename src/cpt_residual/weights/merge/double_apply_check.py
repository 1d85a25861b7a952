"""Refuse a target that already contains the residual.

instruct + alpha * residual is a mistake in every recipe of ours, easily made (one wrong path) and
not seen in the output, which loads, chats and stops. Who wants to go beyond instruct on purpose
loses nothing: base + (1 + alpha) * residual is the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import ShardReader, blocks_of
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.maths import kernels
from cpt_residual.weights.maths.arithmetic import to_float32, to_float64
from cpt_residual.weights.residual.residual_format import ResidualManifest
from cpt_residual.weights.residual.source import DeltaSource, PairDelta, StoredDelta

_SAME_NORM = 1e-9  # relative; norms are float64 sums, taken in one order or another


def require_not_instruct(
    target: Checkpoint, source: DeltaSource, *, alphas: Iterable[float]
) -> None:
    """CompatibilityError when `target` has instruct's weights and an alpha is positive.

    A pair is compared by value, a stored residual by the norm of every tensor of instruct that it
    has recorded; a folder of the `residuals` package says neither and is not checked. Price: a read
    of what is equal, up to the first that is not: little, unless CPT left much as it was.
    """
    if not any(alpha > 0.0 for alpha in alphas):
        return
    if isinstance(source, PairDelta):
        same, what = _equal(target, source.instruct), "weights"
    elif isinstance(source, StoredDelta):
        same, what = _has_norms(target, source.artifact.manifest), "norm"
    else:
        return
    if same:
        raise CompatibilityError(
            "The target is the instruct model itself: the residual would be added twice",
            problems=[f"target: {target.path} has instruct's {what} in every tensor"],
            remedy="Nothing was written. Give the model that CPT has made from the base. (To go "
            "beyond instruct on purpose, add the residual to the base with alpha 1 + a.)",
        )


def _equal(target: Checkpoint, instruct: Checkpoint) -> bool:
    """Whether all that both have is equal as numbers; the first block of every tensor first, for
    one of them differs in any other model."""
    if target.path.resolve() == instruct.path.resolve():
        return True
    both = [entry for name, entry in target.unique_tensors.items() if name in instruct.tensors]
    entries = [_shorter(entry, instruct) for entry in both]
    blocks = sorted(blocks_of(entries), key=lambda block: block.start)
    with ShardReader(target.shards) as left, ShardReader(instruct.shards) as right:
        return all(
            np.array_equal(
                to_float32(left.read(target.tensors[block.name], block.start, block.stop)),
                to_float32(right.read(instruct.tensors[block.name], block.start, block.stop)),
            )
            for block in blocks
        )


def _shorter(entry: TensorEntry, instruct: Checkpoint) -> TensorEntry:
    """Vocabularies may have grown: their first rows are compared."""
    return min(entry, instruct.tensors[entry.name], key=lambda each: each.num_elements)


def _has_norms(target: Checkpoint, manifest: ResidualManifest) -> bool:
    """Whether every tensor of instruct's shape has instruct's norm; the smallest first."""
    entries = [
        entry
        for name, entry in target.unique_tensors.items()
        if name in manifest.tensors and entry.shape == manifest.tensors[name].shape
    ]
    entries.sort(key=lambda entry: entry.num_elements)
    with ShardReader(target.shards) as reader:
        return all(
            math.isclose(
                _norm(reader, entry),
                manifest.tensors[entry.name].instruct_norm,
                rel_tol=_SAME_NORM,
            )
            for entry in entries
        )


def _norm(reader: ShardReader, entry: TensorEntry) -> float:
    squared = 0.0
    for block in blocks_of([entry]):
        values = to_float64(reader.read(entry, block.start, block.stop))
        squared += kernels.dot(values, values)
    return math.sqrt(squared)
