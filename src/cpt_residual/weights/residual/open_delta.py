"""A residual whose files are open: stored ones, and pairs of models."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cpt_residual.methods.low_rank import low_rank_rows
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import Block, ShardReader
from cpt_residual.weights.maths import arithmetic, kernels
from cpt_residual.weights.maths.arithmetic import RAW_DTYPES, Raw, to_float32, to_float64
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.residual.residual_format import (
    BASE_MEAN,
    LEFT,
    RIGHT,
    ResidualArtifact,
)
from cpt_residual.weights.tokens.embedding_rows import gather, mean_of_rows, width_of
from cpt_residual.weights.tokens.vocab_alignment import (
    Mean,
    PairPlan,
)

Exact = npt.NDArray[np.float64]
High, Low = Exact, Exact


class OpenDelta(Protocol):
    """A residual whose files are open."""

    def fetch(self, block: Block) -> None:
        """Reads elements of which this thread then asks for the blocks."""
        ...

    def parts(self, block: Block) -> tuple[High, Low | None]:
        """The residual as high + low (see arithmetic.exact_sum); None: all low parts are 0."""
        ...

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        """out = target + alpha * residual, rounded once to target's dtype."""
        ...

    def base_mean(self, name: str) -> Mean:
        """Base's mean row over the tokens that base and instruct share, of a vocabulary tensor."""
        ...

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        """What was read, by the name that a user knows it by."""
        ...


class OpenStored:
    """A stored residual with its shards open."""

    def __init__(self, artifact: ResidualArtifact, reader: ShardReader) -> None:
        self._artifact, self._reader = artifact, reader
        self._factors: dict[str, tuple[npt.NDArray[np.float32], Exact]] = {}
        self._lock = threading.Lock()

    def fetch(self, block: Block) -> None:
        if self._artifact.manifest.tensors[block.name].rank is None:
            self._reader.fetch(self._artifact.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        record = self._artifact.manifest.tensors[block.name]
        if record.rank is not None:
            left, right = self._read_factors(block.name)
            return low_rank_rows(left, right, block.start, block.stop), None
        delta = self._read(block)
        corrections = self._artifact.corrections(block)
        high = delta.astype(np.float64)
        if not corrections.count:
            return high, None
        at, low = corrections.index, np.zeros_like(high)
        high[at], low[at] = arithmetic.exact_sum(delta[at], corrections.value)
        return high, low

    def stored(self, block: Block) -> Exact:
        """The elements that the shards hold or their factors stand for, without corrections."""
        if self._artifact.manifest.tensors[block.name].rank is not None:
            return self.parts(block)[0]
        return self._read(block).astype(np.float64)

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        record = self._artifact.manifest.tensors[block.name]
        fp32_holds_it = record.rank is None and not self._artifact.corrections(block).count
        if fp32_holds_it and target.dtype != np.float16:
            return kernels.add(target, self._read(block), alpha, out)
        return add_parts(target, self.parts(block), alpha, out)

    def base_mean(self, name: str) -> Mean:
        entry = self._artifact.tensors[name + BASE_MEAN]
        return to_float64(self._reader.read(entry, 0, entry.num_elements))

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        if self._artifact.manifest.tensors[block.name].rank is not None:
            return {"residual": self.parts(block)[0].astype(np.float32)}
        return {"residual": self._read(block)}

    def _read(self, block: Block) -> npt.NDArray[np.float32]:
        entry = self._artifact.tensors[block.name]
        return to_float32(self._reader.read_reusing(entry, block.start, block.stop))

    def _read_factors(self, name: str) -> tuple[npt.NDArray[np.float32], Exact]:
        """Both factors of a matrix; those of the last two matrices are kept, for threads that are
        still in the one before."""
        with self._lock:
            if name not in self._factors:
                entries = [self._artifact.tensors[name + side] for side in (LEFT, RIGHT)]
                left, right = (to_float32(self._reader.read_whole(entry)) for entry in entries)
                kept = list(self._factors.items())[-1:]
                self._factors = dict([*kept, (name, (left, right.astype(np.float64)))])
            return self._factors[name]


class OpenPair:
    """base and instruct with their files open; `aligned` tensors are matched row by row."""

    def __init__(
        self,
        base: Checkpoint,
        instruct: Checkpoint,
        plan: PairPlan,
        readers: tuple[ShardReader, ShardReader],
    ) -> None:
        self.base, self.instruct, self.plan = base, instruct, plan
        self._base, self._instruct = readers
        self.aligned = frozenset[str](() if plan.identity else instruct.rows)

    def fetch(self, block: Block) -> None:
        self._instruct.fetch(self.instruct.tensors[block.name], block.start, block.stop)
        if block.name not in self.aligned:
            self._base.fetch(self.base.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        base, instruct = self.read(block)
        left, right = to_float32(instruct), to_float32(base)
        high, low = arithmetic.exact_sum(left, -right)
        high[(left == 0) & (right == 0) & np.signbit(left)] = -0.0  # as in a stored residual
        return high, low if low.any() else None

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        if target.dtype != np.float16:
            base, instruct = (
                to_float32(raw) if raw.dtype == np.float16 else raw for raw in self.read(block)
            )
            sums, num_inexact = kernels.add_difference(target, base, instruct, alpha, out)
            if not num_inexact:
                return sums
        return add_parts(target, self.parts(block), alpha, out)

    def base_mean(self, name: str) -> Mean:
        entry = self.base.tensors[name]

        def read(start: int, stop: int) -> npt.NDArray[np.float32]:
            return to_float32(self._base.read(entry, start, stop))

        return mean_of_rows(read, self.plan.common_rows, width_of(entry))

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        base, instruct = self.read(block)
        return {"base": base, "instruct": instruct}

    def read(self, block: Block) -> tuple[Raw, Raw]:
        """Raw elements of (base, instruct), valid until this thread's next call; base is 0 in rows
        that only instruct has."""
        base = self.base.tensors[block.name]
        instruct = self.instruct.tensors[block.name]
        other = self._instruct.read_reusing(instruct, block.start, block.stop)
        if block.name not in self.aligned:
            return self._base.read_reusing(base, block.start, block.stop), other
        out = np.empty(block.num_elements, dtype=RAW_DTYPES[base.dtype])
        return gather(self._base, base, block, self.plan.base_row, out), other


def add_parts(target: Raw, parts: tuple[High, Low | None], alpha: float, out: Raw) -> MergeSums:
    """out = target + alpha * (high + low), rounded once to target's dtype."""
    high, low = parts
    start, move = to_float64(target), alpha * high
    exact = start + move
    if low is not None:
        exact = np.where(low != 0.0, exact + alpha * low, exact)
        move = move + alpha * low
    return place(target, exact, move, out)


def place(target: Raw, exact: Exact, move: Exact, out: Raw) -> MergeSums:
    """out = exact, rounded once to target's dtype, which may be fp16; `move` is what made it of
    target."""
    if target.dtype != np.float16:
        return kernels.place(target, exact, move, out)
    out[:] = arithmetic.round_once(exact, "F16")
    start, merged = to_float64(target), to_float64(out)
    moved = move != 0.0
    return MergeSums(
        target_squared=kernels.dot(start, start),
        move_squared=kernels.dot(move, move),
        target_dot_move=kernels.dot(start, move),
        num_moved=int(np.count_nonzero(moved)),
        num_lost=int(np.count_nonzero(moved & (merged == start))),
        num_not_finite=int(np.count_nonzero(~np.isfinite(merged))),
    )
