"""Per-tensor merge rules: the recipe applied to the statistics of one tensor.

A rule knows its share of alpha and how to turn target, base and residual into the exact value that
is then rounded once. Thresholds, factors and automatic strengths are measured over the whole tensor
before its first block is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.methods.method import Joined, Replaced
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.io.reader import Block, blocks_of, map_in_order
from cpt_residual.weights.io.shard_header import Shape, TensorEntry
from cpt_residual.weights.maths import kernels
from cpt_residual.weights.maths.arithmetic import Raw, merged_exactly, to_float64
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.maths.strengths import projection_alpha, scale_of, special_token_rows
from cpt_residual.weights.residual.open_delta import Exact, High, Low, OpenDelta, place

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
class _WholeTensor:
    """All elements of one tensor, for methods that measure it (see methods.method.WholeTensor)."""

    entry: TensorEntry
    sources: Sources

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def owner(self) -> str:
        return self.sources.owner(self.entry.name)

    @property
    def shape(self) -> Shape:
        return self.entry.shape

    def residual(self) -> Iterable[Exact]:
        return self._blocks(lambda block: self.sources.residual(block)[0])

    def cpt_delta(self) -> Iterable[Exact]:
        return self._blocks(self.sources.cpt_delta)

    def _blocks(self, read: Callable[[Block], Exact]) -> Iterable[Exact]:
        return map_in_order(read, blocks_of([self.entry]), threads=self.sources.threads)


@dataclass(frozen=True)
class TensorRule:
    """How one tensor is merged. `scale` multiplies alpha; change: what the method makes of it, None
    for plain addition; rows: which rows get the residual, None for all."""

    recipe: MergeRecipe
    scale: float
    change: Replaced | Joined | None = None
    rows: npt.NDArray[np.bool_] | None = None
    width: int = 1

    def reads_residual(self, alpha: float) -> bool:
        """Whether a merge with `alpha` reads the residual's elements."""
        if isinstance(self.change, Replaced) and not self.change.reads_residual:
            return False
        return not self._leaves(alpha * self.scale)

    def _leaves(self, strength: float) -> bool:
        """Whether the target stays as it is."""
        moves = strength != 0.0 or self.recipe.cpt_strength != 1.0
        return not moves and not isinstance(self.change, Joined)

    @property
    def plain(self) -> bool:
        """Whether this is target + scale * alpha * residual and nothing else."""
        return self.change is None and self.recipe.cpt_strength == 1.0 and self.rows is None

    def merge(
        self, block: Block, target: Raw, alpha: float, out: Raw, sources: Sources
    ) -> MergeSums:
        """out = the merged elements of one block."""
        strength, start = alpha * self.scale, to_float64(target)
        if self._leaves(strength):
            return place(target, start, np.zeros(target.size), out)
        if self.plain:
            owner = Block(sources.owner(block.name), block.start, block.stop)
            return sources.delta.add(owner, target, strength, out)
        exact = self._exact(block, start, strength, sources)
        return place(target, exact, exact - start, out)

    def _exact(self, block: Block, target: Exact, strength: float, sources: Sources) -> Exact:
        high, low = self._residual(block, sources)
        if self.rows is not None:
            at = np.arange(block.start, block.stop) // self.width
            high = np.where(self.rows[at], high, 0.0)
            low = None if low is None else np.where(self.rows[at], low, 0.0)
        cpt_strength, start = self.recipe.cpt_strength, target
        if isinstance(self.change, Joined):
            base = sources.base_values(block)
            return base + self.change.displacement(target - base, high, (cpt_strength, strength))
        if cpt_strength != 1.0:
            base = sources.base_values(block)
            start = base + cpt_strength * (target - base)
        merged = merged_exactly(start, high, np.zeros_like(high) if low is None else low, strength)
        return np.where(high == 0.0, start, merged)  # an unmoved element keeps the sign of its zero

    def _residual(self, block: Block, sources: Sources) -> tuple[High, Low | None]:
        if not isinstance(self.change, Replaced):
            return sources.residual(block)
        elements = self.change.elements
        return elements(block.start, block.stop, lambda: sources.residual(block)[0]), None


def rule_for(entry: TensorEntry, recipe: MergeRecipe, sources: Sources) -> TensorRule:
    """The rule of one tensor. Price: none for plain addition; a pass over the tensor for automatic
    strengths, and what its method reads."""
    scale = scale_of(sources.scaled_as(entry.name), recipe.scales, sources.rows)
    rows: npt.NDArray[np.bool_] | None = None
    if recipe.embedding_rows != "all" and entry.name in sources.rows:
        ids = sources.special_ids if recipe.embedding_rows == "special_tokens" else ()
        rows = special_token_rows(ids, entry.shape[0])
    if recipe.auto_alpha == "projection":
        scale *= _projection(entry, recipe.cpt_strength, sources)
    change = recipe.method.for_tensor(_WholeTensor(entry, sources))
    width = entry.num_elements // entry.shape[0] if entry.shape and entry.shape[0] else 1
    return TensorRule(recipe, scale, change, rows, max(width, 1))


def _projection(entry: TensorEntry, cpt_strength: float, sources: Sources) -> float:
    """The automatic strength of one tensor, from its whole residual and CPT delta."""

    def sums(block: Block) -> tuple[float, float]:
        residual, _ = sources.residual(block)
        return kernels.dot(sources.cpt_delta(block), residual), kernels.dot(residual, residual)

    dot, squared = 0.0, 0.0
    for part in map_in_order(sums, blocks_of([entry]), threads=sources.threads):
        dot, squared = dot + part[0], squared + part[1]
    return projection_alpha(cpt_strength * dot, squared)
