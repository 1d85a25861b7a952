"""Distance between two models of one architecture.

Jindal et al. (2024) add the residual of Llama 3.1 to Llama 3 and the other way (portability); that
works because both releases share weights. Addition of a difference needs a common start (Ilharco
et al. 2023; Neyshabur et al. 2020: networks trained from different starts do not even share the
order of their neurons), which architecture and shapes do not show and these numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cpt_residual.base_model import Frozen
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.geometry_kernels import PairSums, pair_sums
from cpt_residual.weights.tokens.compatibility import require_match, side_of
from cpt_residual.weights.tokens.matching import spelled_like

HELPED_DRIFT = 0.08
"""BonLM (2026): mean relative drift after LoRA CPT, where alpha = 1 helped (3B 41.32 to 42.27)."""
HURT_DRIFT = 0.18
"""BonLM (2026): mean relative drift after full CPT, where alpha = 1 hurt (3B 41.48 to 39.07)."""
UNRELATED_DISTANCE = 1.0
"""Ours, no paper's: the difference is as long as the weights themselves. Two independent random
vectors of one length are at sqrt(2), so at 1 half of the way to a stranger is long passed."""
NUM_FARTHEST = 5


class TensorDistance(Frozen):
    """One tensor of two models. None: the base's tensor (cosine: one of both) is all zero."""

    name: str
    relative_distance: float | None
    cosine: float | None


class Ancestry(Frozen):
    """Two models as two vectors: relative_distance = norm(other - base) / norm(base).

    Over num_parameters elements; tied tensors count once. num_rows_left_out: rows of the embedding
    and the head that only one of the models has; they are in no number here. equal_share: elements
    that are equal as numbers. farthest: the tensors of largest relative distance, farthest first.
    """

    base: str
    other: str
    num_parameters: int
    num_rows_left_out: int
    base_norm: float
    distance: float
    relative_distance: float | None
    cosine: float | None
    equal_share: float
    farthest: list[TensorDistance]


def measure(
    base: Checkpoint, other: Checkpoint, *, streaming: Streaming = DEFAULT_STREAMING
) -> Ancestry:
    """How far `other` is from `base`. Price: one read of each; memory of a few blocks per thread.

    Vocabularies of different size are compared on their first rows, row by row: versions of a
    family append tokens. Rows in another order show as distant embeddings; whether rows mean the
    same tokens is not judged here. Raises CompatibilityError for models of different architecture,
    names or other shapes, and for NaN or Inf.
    """
    other = spelled_like(base.own_names, other)
    require_match(side_of(base), side_of(other), rows_may_differ=True)
    for model in (base, other):
        require_equal_aliases(model, threads=streaming.threads)
    entries = [
        _shorter(entry, other.tensors[entry.name])
        for entry in sorted(base.unique_tensors.values(), key=lambda entry: entry.name)
    ]
    sums = {entry.name: PairSums() for entry in entries}
    total, num_done = sum(entry.num_elements for entry in entries), 0
    with ShardReader(base.shards) as left, ShardReader(other.shards) as right:

        def block_sums(block: Block) -> tuple[Block, PairSums]:
            one = left.read_reusing(base.tensors[block.name], block.start, block.stop)
            two = right.read_reusing(other.tensors[block.name], block.start, block.stop)
            return block, pair_sums(one, two)

        for block, part in map_in_order(block_sums, blocks_of(entries), threads=streaming.threads):
            sums[block.name] = sums[block.name].plus(part)
            num_done += block.num_elements
            streaming.progress(num_done, total, "parameters")
    require_finite(
        f"{name}: NaN or Inf in one of {base.role}, {other.role}"
        for name, tensor in sums.items()
        if not all(map(math.isfinite, tensor))
    )
    return _ancestry(base, other, sums)


def warnings(ancestry: Ancestry, *, residual_norm: float | None = None) -> list[str]:
    """What a user should know before adding a residual made for `base` to `other`; often nothing.

    Silent up to a relative distance of HELPED_DRIFT. residual_norm: norm of the whole residual.
    Nothing is refused: no paper gives a limit, and portability is measured on two releases only.
    """
    lines = [_rows_line(ancestry)] if ancestry.num_rows_left_out else []
    relative = ancestry.relative_distance
    if relative is None or relative > HELPED_DRIFT:
        lines.append(_distance_line(ancestry))
        if residual_norm is not None and ancestry.distance > residual_norm > 0.0:
            lines.append(
                f"the distance between {ancestry.base} and {ancestry.other} "
                f"({ancestry.distance:.4g}) is {ancestry.distance / residual_norm:.3g} times the "
                f"norm of the residual ({residual_norm:.4g})"
            )
    strangers = [
        tensor
        for tensor in ancestry.farthest
        if tensor.relative_distance is None or tensor.relative_distance >= UNRELATED_DISTANCE
    ]
    if strangers:
        lines.append(_strangers_line(strangers, everywhere=_are_strangers(ancestry)))
    return lines


def _shorter(left: TensorEntry, right: TensorEntry) -> TensorEntry:
    """The entry of fewer elements: blocks of it lie in both tensors."""
    return left if left.num_elements <= right.num_elements else right


def _ancestry(base: Checkpoint, other: Checkpoint, sums: dict[str, PairSums]) -> Ancestry:
    total = PairSums()
    for part in sums.values():
        total = total.plus(part)
    rows = [(base.tensors[name].shape, other.tensors[name].shape) for name in sums]
    order = sorted(sums, key=lambda name: (-_rank(sums[name]), name))
    return Ancestry(
        base=base.role,
        other=other.role,
        num_parameters=total.num_elements,
        num_rows_left_out=sum(abs(x[0] - y[0]) for x, y in rows if x != y),
        base_norm=math.sqrt(total.left_squared),
        distance=math.sqrt(total.distance_squared),
        relative_distance=_relative(total),
        cosine=_cosine(total),
        equal_share=total.num_equal / total.num_elements if total.num_elements else 1.0,
        farthest=[
            TensorDistance(
                name=name, relative_distance=_relative(sums[name]), cosine=_cosine(sums[name])
            )
            for name in order[:NUM_FARTHEST]
        ],
    )


def _rank(sums: PairSums) -> float:
    relative = _relative(sums)
    return math.inf if relative is None else relative


def _relative(sums: PairSums) -> float | None:
    """0 for equal tensors, also where both are all zero."""
    if sums.distance_squared == 0.0:
        return 0.0
    return arithmetic.relative_norm(sums.distance_squared, sums.left_squared)


def _cosine(sums: PairSums) -> float | None:
    return arithmetic.cosine(sums.dot, sums.left_squared, sums.right_squared)


def _rows_line(ancestry: Ancestry) -> str:
    return (
        f"{ancestry.num_rows_left_out} vocabulary rows that only one of {ancestry.base} and "
        f"{ancestry.other} has are in none of these numbers"
    )


def _distance_line(ancestry: Ancestry) -> str:
    return (
        f"the residual was made for weights ({ancestry.base}) at a relative distance of "
        f"{_number(ancestry.relative_distance)} (cosine {_number(ancestry.cosine)}, "
        f"{100 * ancestry.equal_share:.1f} % of elements equal) from these ({ancestry.other}); "
        f"BonLM (2026) saw alpha = 1 hurt at a drift of {HURT_DRIFT} and help at {HELPED_DRIFT}"
    )


def _are_strangers(ancestry: Ancestry) -> bool:
    relative = ancestry.relative_distance
    return relative is None or relative >= UNRELATED_DISTANCE


def _strangers_line(tensors: Sequence[TensorDistance], *, everywhere: bool) -> str:
    named = ", ".join(
        f"{t.name} {_number(t.relative_distance)} (cosine {_number(t.cosine)})" for t in tensors
    )
    if everywhere:
        return (
            "the two models do not look like descendants of one: their difference is as long as "
            f"the weights themselves; farthest: {named}. A residual is meaningless there "
            "(Ilharco et al. 2023 need a common start)"
        )
    return (
        f"tensors whose difference is as long as the weights themselves, by relative distance: "
        f"{named}. Weights were replaced or rows are in another order"
    )


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00")
