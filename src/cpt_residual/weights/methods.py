"""Merging beyond plain addition: pure functions on arrays, each with its source.

Notation: delta = theta_target - theta_base (the CPT delta), r = theta_instruct - theta_base (the
residual), lambda and alpha their strengths. Every result depends on the whole tensor alone, never
on how it is cut into blocks. Nothing here reads a file. Inputs are finite.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import CompatibilityError, ConfigError, did_you_mean
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.naming import MODULE_CLASSES, layer_of, module_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_LOW_BITS = 15  # of the 31 magnitude bits; the upper 16 are counted first
_FIRST_NOT_FINITE = 0x7F80_0000 >> _LOW_BITS
_CHUNK = 1 << 20  # elements held in float64 at a time
_GRID = 1 << 16  # elements of a product that are always computed together
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


# --- DARE -----------------------------------------------------------------------------------------
def dare_factors(name: str, start: int, count: int, *, drop_rate: float, seed: int) -> F64:
    """Factors for elements start..start+count of tensor `name`, flat: 0 with probability
    `drop_rate`, else 1 / (1 - drop_rate), so that the expected factor is 1 (DARE, Yu et al. 2024).

    A factor depends on seed, name and the element's index alone: element i has word i of the
    Philox 4x64 stream whose key comes from sha256 of seed and name. It is dropped when that word
    is below drop_rate * 2^64, an exact integer comparison. 0 <= drop_rate < 1.
    """
    if drop_rate == 0.0:
        return np.ones(count)
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    first, skipped = divmod(start, 4)  # one step of the counter gives four words
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first)
    words = stream.random_raw(skipped + count)[skipped:]
    dropped = words < np.uint64(int(Fraction(drop_rate) * 2**64))
    return np.where(dropped, 0.0, 1.0 / (1.0 - drop_rate))


# --- TIES -----------------------------------------------------------------------------------------
def num_to_keep(num_elements: int, density: float) -> int:
    """How many elements trimming keeps: the least number that is at least `density` of them."""
    return math.ceil(Fraction(repr(density)) * num_elements)  # 0.07 of 100 is 7, as written


def magnitude_threshold(
    blocks: Callable[[], Iterable[F32]], *, num_kept: int, label: str = "values"
) -> float:
    """The `num_kept`-th largest magnitude of all elements, exactly; 0 when there are none.

    Kept is what is >= the threshold: all that tie at it, so at least `num_kept` elements, all of
    them when `num_kept` is their number or more. `blocks` is called twice and gives the same
    elements, in any cut. Price: two passes, less than 1 MB beside one block: magnitudes of fp32
    order like their 31 bits, so the first pass counts the upper 16, the second the other 15 of
    those with the right upper 16. Raises CompatibilityError, with `label`, for NaN and Inf.
    """
    assert num_kept > 0
    upper = np.zeros(1 << (31 - _LOW_BITS), dtype=np.int64)
    for bits in map(_magnitude_bits, blocks()):
        upper += np.bincount(bits >> _LOW_BITS, minlength=upper.size)
    if upper[_FIRST_NOT_FINITE:].any():
        raise CompatibilityError(
            f"{label}: NaN or Inf among the elements to trim by magnitude",
            remedy="Nothing can be kept by rank. Use models whose weights are all finite.",
        )
    if not upper.any():
        return 0.0
    rank = min(num_kept, int(upper.sum()))
    high, above = _bin_of_rank(upper, rank)
    lower = np.zeros(1 << _LOW_BITS, dtype=np.int64)
    for bits in map(_magnitude_bits, blocks()):
        within = bits[(bits >> _LOW_BITS) == high] & (lower.size - 1)
        lower += np.bincount(within, minlength=lower.size)
    low, _ = _bin_of_rank(lower, rank - above)
    return float(np.uint32((high << _LOW_BITS) | low).view(np.float32))


def _magnitude_bits(block: F32) -> npt.NDArray[np.uint32]:
    assert block.dtype == np.float32
    return np.ascontiguousarray(block).reshape(-1).view(np.uint32) & np.uint32(0x7FFF_FFFF)


def _bin_of_rank(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest element (from 1), and how many lie in bins above."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, rank))
    above = int(from_above[place - 1]) if place else 0
    return counts.size - 1 - place, above


def ties(
    cpt_delta: F64 | F32,
    residual: F64 | F32,
    *,
    thresholds: tuple[float, float],
    weights: tuple[float, float],
) -> F64:
    """The displacement from base of TIES-Merging (Yadav et al. 2023) with two vectors.

    With v = (delta, r), weights w = (lambda, alpha) and one threshold each (see
    `magnitude_threshold`), per element:

        trim   t_i = w_i * v_i  where |v_i| >= threshold_i, else 0
        elect  s = sign(t_1 + t_2)
        merge  mean of those t_i with sign(t_i) = s; 0 where there are none

    Zeros and vectors of weight 0 have no sign: they neither vote nor count in the mean, so what
    survives alone moves base by all of its weighted value. Where both agree, the mean gives
    (lambda * delta + alpha * r) / 2, half of plain addition: this is the paper's disjoint mean,
    meant to keep the size of one vector. At lambda = alpha it is the paper's
    theta_base + lambda * merged; (2, 2) restores plain addition where both agree.

    Why the weights enter before the election: the vectors that are merged, lambda * delta and
    alpha * r, are also the ones that vote, so a negative weight votes for the negated vector.
    Magnitudes are compared as fp32, as they were when the threshold was found. Differs from
      the paper's code   at t_1 = -t_2, where it takes the sign that most elements elected: that
                         depends on all other elements; here nothing moves, and the result for
                         negated vectors is the negated result
      mergekit `ties`    which divides by the sum of the agreeing weights (`normalize: true`, so
                         that a lone survivor loses its weight) or by nothing (`false`), elects +
                         at t_1 = -t_2, and trims per tensor
      PEFT `ties`        which elects by the vectors without weights, and + at a sum of 0
    Where nothing survives the result is -0.0: adding it keeps every bit of base.
    """
    left = _trimmed(cpt_delta, thresholds[0]) * weights[0]
    right = _trimmed(residual, thresholds[1]) * weights[1]
    elected = np.sign(left + right)
    left_counts = (np.sign(left) == elected) & (elected != 0.0)
    right_counts = (np.sign(right) == elected) & (elected != 0.0)
    total = np.where(left_counts, left, -0.0) + np.where(right_counts, right, -0.0)
    return np.where(left_counts & right_counts, total / 2.0, total)


def _trimmed(values: F64 | F32, threshold: float) -> F64:
    with np.errstate(over="ignore"):  # beyond fp32 is Inf, which is kept
        magnitude = np.abs(values).astype(np.float32)
    return np.where(magnitude >= np.float32(threshold), values.astype(np.float64), 0.0)


# --- low rank -------------------------------------------------------------------------------------
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
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    for first in range(0, matrix.shape[0], step):
        yield matrix[first : first + step].astype(np.float64)


def _explained_shares(falling: F64) -> F64:
    """Share of the sum that the first 1, 2, ... eigenvalues make up; what is rounding is 0."""
    noise = falling[0] * falling.size * np.finfo(np.float64).eps
    sums = np.cumsum(np.where(falling > noise, falling, 0.0))
    return sums / sums[-1]


def _with_fixed_signs(columns: F64) -> F64:
    pivots = np.argmax(np.abs(columns), axis=0)
    return columns * np.where(columns[pivots, np.arange(columns.shape[1])] < 0.0, -1.0, 1.0)


# --- strengths ------------------------------------------------------------------------------------
def projection_alpha(
    dot: float, residual_squared: float, *, low: float = 0.0, high: float = 2.0
) -> float:
    """Drift-aware alpha of one tensor: clip(1 - <delta, r> / <r, r>, low, high); 1.0 when r is 0.

    `dot` is <delta, r> of the CPT delta that is merged (lambda times it, with a strength lambda),
    `residual_squared` is <r, r>. From delta + alpha * r = merged - base follows
    <merged - base, r> = <delta, r> + alpha * <r, r>; this alpha makes it <r, r>, which is
    <instruct - base, r>: along r, the merged model is where instruct is. CPT that already went
    part of the way takes less residual, CPT that went back takes more. This project's rule, not
    from a paper. Its limit: in high dimension, unrelated updates are nearly orthogonal, so alpha
    is near 1 unless drift is large against the residual; and it looks at direction alone, so a
    drift that ruins the residual at right angles to it goes unseen. Raises CompatibilityError for
    sums that are not finite.
    """
    if not (math.isfinite(dot) and math.isfinite(residual_squared)):
        raise CompatibilityError(
            f"no alpha follows from <delta, r> = {dot} and <r, r> = {residual_squared}",
            remedy="Use models whose weights are all finite.",
        )
    if residual_squared == 0.0:
        return 1.0
    return min(max(1.0 - dot / residual_squared, low), high)


def scale_of(name: str, scales: Mapping[str, float], rows: Mapping[str, RowPart]) -> float:
    """The factor on alpha for tensor `name`: that of the last key that matches it, else 1.0.

    A key is a module class (attention, mlp, embeddings, head, norm, other), `layers.A` or
    `layers.A-B` (layer numbers, inclusive), or a glob over full tensor names (case matters).
    rows: see `naming.module_of`.
    """
    matching = [scale for key, scale in scales.items() if _matches(key, name, rows)]
    return matching[-1] if matching else 1.0


def names_parts(recipe: MergeRecipe) -> bool:
    """Whether a recipe treats embeddings or head apart from the rest, so that the class has to say
    which tensors those are."""
    return recipe.embedding_rows != "all" or any(key in MODULE_CLASSES for key in recipe.scales)


def require_known_scales(
    names: Iterable[str], scales: Mapping[str, float], rows: Mapping[str, RowPart]
) -> None:
    """Raises ConfigError that lists every scale that is not finite or matches none of `names`."""
    known = sorted(names)
    problems = [
        f"scales.{key}: {scale} is not a finite number"
        for key, scale in scales.items()
        if not math.isfinite(scale)
    ]
    problems += [
        f"scales.{key}: no tensor matches.{_nearest(key, known, rows)}"
        for key in scales
        if not any(_matches(key, name, rows) for name in known)
    ]
    if problems:
        raise ConfigError(
            f"{len(problems)} scale(s) cannot be used",
            problems=problems,
            remedy=f"A key is a module class ({', '.join(MODULE_CLASSES)}), layers (layers.A or "
            "layers.A-B, inclusive), or a glob over full tensor names.",
        )


def _matches(key: str, name: str, rows: Mapping[str, RowPart]) -> bool:
    if key in MODULE_CLASSES:
        return module_of(name, rows) == key
    if layers := _LAYERS.fullmatch(key):
        layer, first = layer_of(name), int(layers[1])
        return layer is not None and first <= layer <= int(layers[2] or first)
    return fnmatchcase(name, key)


def _nearest(key: str, names: list[str], rows: Mapping[str, RowPart]) -> str:
    if key in MODULE_CLASSES:
        present = dict.fromkeys(module_of(name, rows) for name in names)
        return f" The model has: {', '.join(present)}."
    if _LAYERS.fullmatch(key):
        layers = [layer for name in names if (layer := layer_of(name)) is not None]
        return f" The layers are {min(layers)} to {max(layers)}." if layers else " No layers."
    if "." not in key:
        return did_you_mean(key, MODULE_CLASSES)
    known = sorted({word for name in names for word in _words(name)})
    near = [
        f" Did you mean '{match}'?"
        for word in _words(key)
        if word not in known
        for match in get_close_matches(word, known, n=1)
    ]
    return "".join(near[:1])


def _words(pattern: str) -> list[str]:
    return [word for word in re.split(r"[.*?\[\]]+", pattern) if not word.isdigit()]


def special_token_rows(ids: Iterable[int], num_rows: int) -> npt.NDArray[np.bool_]:
    """Which of `num_rows` rows of an embedding or head belong to the token ids `ids` (Chat Vector,
    Huang et al. 2023, adds the residual to none or to these alone). Raises CompatibilityError for
    ids that have no row."""
    wanted = sorted(set(ids))
    if beyond := [str(token) for token in wanted if not 0 <= token < num_rows]:
        raise CompatibilityError(
            f"{len(beyond)} special token(s) have no row in a matrix of {num_rows} rows",
            problems=[f"id {token}" for token in beyond],
            remedy="The tokenizer does not belong to this model, or its embedding was cut.",
        )
    rows = np.zeros(num_rows, dtype=np.bool_)
    rows[wanted] = True
    return rows
