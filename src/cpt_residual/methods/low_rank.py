"""The residual's matrices in their best approximation of low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cpt_residual.errors import CompatibilityError
from cpt_residual.methods.method import Method, Replaced, WholeTensor

if TYPE_CHECKING:
    from cpt_residual.methods.method import F32, F64

_CHUNK = 1 << 20  # elements held in float64 at a time
_GRID = 1 << 16  # elements of a product that are always computed together


class LowRank(Method):
    """The best approximation of low rank of each matrix of the residual (RE-Adapt, Fleshman and Van
    Durme 2024): by `rank`, or the least rank that explains a share of its squared norm. What is no
    matrix is added as it is."""

    kind: Literal["low_rank"] = "low_rank"
    rank: Annotated[int | None, Field(gt=0, description="how many factors")] = None
    explained_variance: Annotated[
        float | None, Field(gt=0.0, le=1.0, description="share of the squared norm to explain")
    ] = None
    words: ClassVar[str] = "low-rank residual (RE-Adapt, Fleshman and Van Durme 2024)"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.15007"
    num_reads: ClassVar[int] = 2

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.rank is None) == (self.explained_variance is None):
            raise ValueError("give either rank or explained_variance")
        return self

    def for_tensor(self, tensor: WholeTensor) -> Replaced | None:
        import numpy as np

        if len(tensor.shape) != 2:
            return None
        matrix, done = np.empty(math.prod(tensor.shape), dtype=np.float32), 0
        for block in tensor.residual():
            matrix[done : done + block.size] = block
            done += block.size
        factors = self.factors(matrix.reshape(tensor.shape))
        return Replaced(
            lambda start, stop, _: low_rank_rows(factors.left, factors.right, start, stop),
            reads_residual=False,
        )

    def factors(self, matrix: F32) -> LowRankFactors:
        """The factors of one matrix (see `low_rank`)."""
        return low_rank(matrix, rank=self.rank, explained_variance=self.explained_variance)

    def memory_bytes(self, shape: tuple[int, ...], *, threads: int) -> int:
        """The matrix, the Gram matrix with LAPACK's work space, the factors with a copy, those of
        the matrix before, and one of them in float64 in every thread. By explained variance the
        rank is not known before: that of the whole matrix is taken."""
        if len(shape) != 2:
            return 0
        rows, columns = shape
        small = min(rows, columns)
        rank = small if self.rank is None else min(self.rank, small)
        factors = 4 * rank * (rows + columns)
        gram = 8 * small * (5 * small + rank)
        return 4 * rows * columns + gram + 3 * factors + 8 * rank * columns * threads


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """left (rows, rank) @ right (rank, columns), the factors of one matrix in fp32."""

    left: F32
    right: F32

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def low_rank(
    matrix: F32, *, rank: int | None = None, explained_variance: float | None = None
) -> LowRankFactors:
    """The best approximation of low rank in the Frobenius norm (Eckart and Young 1936), as RE-Adapt
    applies to the residual (Fleshman and Van Durme 2024).

    Give one: `rank` (at most the smaller side is used), or `explained_variance`, for the least rank
    that keeps this share of the squared norm (1.0: all that is not rounding). A zero matrix has
    rank 1 and factors of zeros. One factor has orthonormal rows or columns,
    that of the smaller side; each of its vectors has its entry of largest magnitude positive, so
    equal input gives equal factors (with one build of numpy and number of BLAS threads).

    Through eigh of the Gram matrix of the smaller side n in float64. Directions whose singular
    value is below sqrt(n * 2.2e-16) of the largest count as rounding in the explained share.
    Price: O(n^3) time, some 5 n^2 float64 and 24 MB beside the factors. Raises CompatibilityError
    for NaN or Inf.
    """
    import numpy as np

    assert (rank is None) != (explained_variance is None)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    with np.errstate(invalid="ignore"):  # Inf * 0; refused below
        for rows in _row_chunks(tall):
            gram += rows.T @ rows
    norm_squared = float(np.trace(gram))
    if not math.isfinite(norm_squared):
        raise CompatibilityError("a matrix with NaN or Inf has no approximation of low rank")
    if norm_squared == 0.0:
        left, right = np.zeros((matrix.shape[0], 1)), np.zeros((1, matrix.shape[1]))
        return LowRankFactors(left.astype(np.float32), right.astype(np.float32))
    values, vectors = np.linalg.eigh(gram)  # rising
    if explained_variance is not None:
        rank = int(np.searchsorted(_explained_shares(values[::-1]), explained_variance)) + 1
    assert rank is not None
    rank = min(rank, values.size)
    short = _with_fixed_signs(vectors[:, ::-1][:, :rank])
    long = np.concatenate([(rows @ short).astype(np.float32) for rows in _row_chunks(tall)])
    kept = short.astype(np.float32)
    left, right = (long, kept.T) if tall is matrix else (kept, long.T)
    return LowRankFactors(left=np.ascontiguousarray(left), right=np.ascontiguousarray(right))


def low_rank_rows(left: F32, right: F32 | F64, start: int, stop: int) -> F64:
    """Elements start..stop, flat, of left (rows, rank) @ right (rank, columns), in float64.

    Rows are multiplied in groups that the shapes alone decide, so every cut gives the same bits.
    Price: the groups that are touched, about 1 MB each, and `right` in float64 where it is
    not given so.
    """
    import numpy as np

    num_columns = right.shape[1]
    rows_per_group = max(8, _GRID // max(1, num_columns))
    per_group = rows_per_group * num_columns
    out, wide = np.empty(stop - start), right.astype(np.float64, copy=False)
    for group in range(start // per_group, -(-stop // per_group)) if stop > start else ():
        first_row, offset = group * rows_per_group, group * per_group
        product = left[first_row : first_row + rows_per_group].astype(np.float64) @ wide
        begin, end = max(start, offset), min(stop, offset + product.size)
        out[begin - start : end - start] = product.reshape(-1)[begin - offset : end - offset]
    return out


def _row_chunks(matrix: F32) -> Iterator[F64]:
    """The rows in float64, some at a time; where they are cut depends on the shape alone."""
    import numpy as np

    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    for first in range(0, matrix.shape[0], step):
        yield matrix[first : first + step].astype(np.float64)


def _explained_shares(falling: F64) -> F64:
    """Share of the sum that the first 1, 2, ... eigenvalues make up; what is rounding is 0."""
    import numpy as np

    noise = falling[0] * falling.size * np.finfo(np.float64).eps
    sums = np.cumsum(np.where(falling > noise, falling, 0.0))
    return sums / sums[-1]


def _with_fixed_signs(columns: F64) -> F64:
    import numpy as np

    pivots = np.argmax(np.abs(columns), axis=0)
    return columns * np.where(columns[pivots, np.arange(columns.shape[1])] < 0.0, -1.0, 1.0)
