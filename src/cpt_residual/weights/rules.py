"""Per-tensor merge rules: the recipe applied to the statistics of one tensor.

A rule knows its share of alpha and how to turn target, base and residual into the exact value that
is then rounded once. Thresholds, factors and automatic strengths are measured over the whole tensor
before its first block is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import Dare, LowRank, MergeRecipe, Ties
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights import kernels
from cpt_residual.weights.arithmetic import Raw, merged_exactly, to_float64
from cpt_residual.weights.kernels import MergeSums
from cpt_residual.weights.methods import (
    LowRankFactors,
    dare_factors,
    low_rank,
    low_rank_rows,
    magnitude_threshold,
    num_to_keep,
    projection_alpha,
    scale_of,
    special_token_rows,
    ties,
)
from cpt_residual.weights.open_delta import Exact, High, Low, OpenDelta, place
from cpt_residual.weights.reader import Block, blocks_of, map_in_order
from cpt_residual.weights.shard_header import TensorEntry

ReadBlock = Callable[[Block], Raw]


@dataclass(frozen=True)
class Sources:
    """The opened inputs. `target` and `base` read raw blocks by the target's names; `fetch` reads a
    run of both of which this thread then asks for the blocks; `owner` names the tensor whose
    residual a tied copy or one of `untied` (see Addition.untied) gets; `special_ids` are those of
    the special tokens; `rows`: the tensors with one row per token."""

    target: ReadBlock
    base: ReadBlock | None
    fetch: Callable[[Block], None]
    delta: OpenDelta
    owner: Callable[[str], str]
    untied: Mapping[str, str]
    special_ids: Collection[int]
    rows: Mapping[str, RowPart]
    threads: int

    def scaled_as(self, name: str) -> str:
        """The name that decides a tensor's factor on alpha: equal for tied copies."""
        return name if name in self.untied else self.owner(name)

    def base_values(self, block: Block) -> Exact:
        """The base's elements."""
        assert self.base is not None, "recipes that need the base are refused without it"
        return to_float64(self.base(block))

    def cpt_delta(self, block: Block) -> Exact:
        """target - base."""
        return to_float64(self.target(block)) - self.base_values(block)

    def residual(self, block: Block) -> tuple[High, Low | None]:
        return self.delta.parts(Block(self.owner(block.name), block.start, block.stop))


@dataclass(frozen=True)
class TensorRule:
    """How one tensor is merged. `scale` multiplies alpha; thresholds are TIES', of the CPT delta
    and the residual; rows: which rows get the residual, None for all."""

    recipe: MergeRecipe
    scale: float
    thresholds: tuple[float, float] | None = None
    factors: LowRankFactors | None = None
    rows: npt.NDArray[np.bool_] | None = None
    width: int = 1

    def reads_residual(self, alpha: float) -> bool:
        """Whether a merge with `alpha` reads the residual's elements."""
        moves = alpha * self.scale != 0.0 or self.recipe.cpt_strength != 1.0
        return self.factors is None and (moves or self.thresholds is not None)

    @property
    def plain(self) -> bool:
        """Whether this is target + scale * alpha * residual and nothing else."""
        adds = self.recipe.method.kind == "add" or (
            self.recipe.method.kind == "low_rank" and self.factors is None
        )
        return adds and self.recipe.cpt_strength == 1.0 and self.rows is None

    def merge(
        self, block: Block, target: Raw, alpha: float, out: Raw, sources: Sources
    ) -> MergeSums:
        """out = the merged elements of one block."""
        strength = alpha * self.scale
        if strength == 0.0 and self.recipe.cpt_strength == 1.0 and self.thresholds is None:
            return place(target, to_float64(target), np.zeros(target.size), out)
        if self.plain:
            owner = Block(sources.owner(block.name), block.start, block.stop)
            return sources.delta.add(owner, target, strength, out)
        start = to_float64(target)
        exact = self._exact(block, start, strength, sources)
        return place(target, exact, exact - start, out)

    def _exact(self, block: Block, target: Exact, strength: float, sources: Sources) -> Exact:
        high, low = self._residual(block, sources)
        if self.rows is not None:
            at = np.arange(block.start, block.stop) // self.width
            high = np.where(self.rows[at], high, 0.0)
            low = None if low is None else np.where(self.rows[at], low, 0.0)
        if self.thresholds is not None:
            base = sources.base_values(block)
            weights = (self.recipe.cpt_strength, strength)
            return base + ties(target - base, high, thresholds=self.thresholds, weights=weights)
        start = target
        if self.recipe.cpt_strength != 1.0:
            base = sources.base_values(block)
            start = base + self.recipe.cpt_strength * (target - base)
        merged = merged_exactly(start, high, np.zeros_like(high) if low is None else low, strength)
        return np.where(high == 0.0, start, merged)  # an unmoved element keeps the sign of its zero

    def _residual(self, block: Block, sources: Sources) -> tuple[High, Low | None]:
        if self.factors is not None:
            left, right = self.factors.left, self.factors.right
            return low_rank_rows(left, right, block.start, block.stop), None
        high, low = sources.residual(block)
        method = self.recipe.method
        if isinstance(method, Dare):
            kept = dare_factors(
                sources.owner(block.name),
                block.start,
                block.num_elements,
                drop_rate=method.drop_rate,
                seed=method.seed,
            )
            return high * kept, None
        return high, low


def rule_for(entry: TensorEntry, recipe: MergeRecipe, sources: Sources) -> TensorRule:
    """The rule of one tensor. Price: none for plain addition; a pass over the tensor for automatic
    strengths and factors, four for TIES' thresholds."""
    scale = scale_of(sources.scaled_as(entry.name), recipe.scales, sources.rows)
    rows: npt.NDArray[np.bool_] | None = None
    if recipe.embedding_rows != "all" and entry.name in sources.rows:
        ids = sources.special_ids if recipe.embedding_rows == "special_tokens" else ()
        rows = special_token_rows(ids, entry.shape[0])
    if recipe.auto_alpha == "projection":
        scale *= _projection(entry, recipe.cpt_strength, sources)
    method, thresholds, factors = recipe.method, None, None
    if isinstance(method, Ties):
        thresholds = _thresholds(entry, method.density, sources)
    if isinstance(method, LowRank) and len(entry.shape) == 2:
        factors = _factors(entry, method, sources)
    width = entry.num_elements // entry.shape[0] if entry.shape and entry.shape[0] else 1
    return TensorRule(recipe, scale, thresholds, factors, rows, max(width, 1))


def _projection(entry: TensorEntry, cpt_strength: float, sources: Sources) -> float:
    """The automatic strength of one tensor, from its whole residual and CPT delta."""

    def sums(block: Block) -> tuple[float, float]:
        residual, _ = sources.residual(block)
        return kernels.dot(sources.cpt_delta(block), residual), kernels.dot(residual, residual)

    dot, squared = 0.0, 0.0
    for part in map_in_order(sums, blocks_of([entry]), threads=sources.threads):
        dot, squared = dot + part[0], squared + part[1]
    return projection_alpha(cpt_strength * dot, squared)


def _thresholds(entry: TensorEntry, density: float, sources: Sources) -> tuple[float, float]:
    """The least magnitudes that TIES keeps, of the CPT delta and of the residual."""

    def threshold(label: str, part: Callable[[Block], Exact]) -> float:
        def blocks() -> Iterator[npt.NDArray[np.float32]]:
            parts = map_in_order(part, blocks_of([entry]), threads=sources.threads)
            return (values.astype(np.float32) for values in parts)

        num_kept = num_to_keep(entry.num_elements, density)
        return magnitude_threshold(blocks, num_kept=max(num_kept, 1), label=label)

    return (
        threshold(f"{entry.name}: CPT delta", sources.cpt_delta),
        threshold(f"{entry.name}: residual", lambda block: sources.residual(block)[0]),
    )


def _factors(entry: TensorEntry, spec: LowRank, sources: Sources) -> LowRankFactors:
    flat = np.empty(entry.num_elements, dtype=np.float32)

    def fill(block: Block) -> None:
        flat[block.start : block.stop] = sources.residual(block)[0]

    for _ in map_in_order(fill, blocks_of([entry]), threads=sources.threads):
        pass
    matrix = flat.reshape(entry.shape)
    return low_rank(matrix, rank=spec.rank, explained_variance=spec.explained_variance)
