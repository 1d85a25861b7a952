"""Read the rows of a tensor in permuted order, in runs of consecutive rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cpt_residual.weights.io.reader import Block, ShardReader
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.maths.arithmetic import Raw
from cpt_residual.weights.tokens.vocab_alignment import NONE, Mean, RowNumbers, mean_row

_ROWS_AT_ONCE = 128


def width_of(entry: TensorEntry) -> int:
    """Elements of one row."""
    return entry.num_elements // entry.shape[0] if entry.shape and entry.shape[0] else 1


def runs(block: Block, row_of: RowNumbers, width: int) -> Iterator[tuple[slice, int]]:
    """The block's elements as runs: where in the block, and the first element in the source (flat)
    or NONE for rows that the source does not have."""
    first, last = block.start // width, -(-block.stop // width)
    rows = row_of[first:last]
    breaks = np.flatnonzero((np.diff(rows) != 1) & ~((rows[1:] == NONE) & (rows[:-1] == NONE))) + 1
    edges = [0, *(int(at) for at in breaks), len(rows)] if len(rows) else []
    for begin, end in pairwise(edges):
        start = max((first + begin) * width, block.start)
        stop = min((first + end) * width, block.stop)
        row = int(rows[begin])
        source = NONE if row == NONE else row * width + start - (first + begin) * width
        yield slice(start - block.start, stop - block.start), source


def gather(
    reader: ShardReader, entry: TensorEntry, block: Block, row_of: RowNumbers, out: Raw
) -> Raw:
    """`out` filled with the block's raw elements; rows that `entry` does not have are zeros."""
    for place, source in runs(block, row_of, width_of(entry)):
        if source == NONE:
            out[place] = 0
        else:
            out[place] = reader.read(entry, source, source + place.stop - place.start)
    return out


def mean_of_rows(
    read: Callable[[int, int], npt.NDArray[np.floating]], rows: RowNumbers, width: int
) -> Mean:
    """The mean of `rows` (rising), rounded to fp32, (width,); `read` gives flat elements."""

    def blocks() -> Iterator[npt.NDArray[np.floating]]:
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(rows, breaks):
            for start in range(0, len(run), _ROWS_AT_ONCE):
                part = run[start : start + _ROWS_AT_ONCE]
                values = read(int(part[0]) * width, (int(part[-1]) + 1) * width)
                yield values.reshape(len(part), width)

    return mean_row(blocks() if len(rows) else ()).astype(np.float32).astype(np.float64)
