"""Prefix hashes over the rows of a pack: integrity, and whether one pack is a prefix of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from cpt_residual.data.packing.pack_format import PackView, hashed_bytes
from cpt_residual.data.packing.rows import PADDING
from cpt_residual.errors import CorruptArtifactError

_TOKENS_AT_ONCE = 1 << 20


def row_hashes(pack: PackView, at: Iterable[int]) -> dict[int, str]:
    """The hash over the first rows, as the ledger's marks have it, for each number of rows in `at`
    that the pack has. Reads these rows once, in constant memory."""
    digest, done = hashlib.sha256(), 0
    step = max(_TOKENS_AT_ONCE // pack.sequence_length, 1)
    found: dict[int, str] = {}
    for stop in sorted(rows for rows in set(at) if 0 <= rows <= len(pack)):
        while done < stop:
            part = slice(done, min(done + step, stop))
            digest.update(hashed_bytes(np.asarray(pack.ids[part]), np.asarray(pack.flags[part])))
            done = part.stop
            pack.let_go()
        found[stop] = digest.hexdigest()
    return found


def rows_sha256(pack: PackView, num_rows: int) -> str:
    """The hash over the first `num_rows` rows of a pack that has so many."""
    return row_hashes(pack, [num_rows])[num_rows]


def check_rows(pack: PackView) -> None:
    """Raise CorruptArtifactError unless the rows are those that were written. Reads all."""
    require_rows(pack, rows_sha256(pack, len(pack)))


def require_rows(pack: PackView, found: str) -> None:
    """Raise CorruptArtifactError unless `found`, the hash over all rows, is the ledger's."""
    if found != pack.ledger.rows_sha256:
        raise CorruptArtifactError(
            f"pack {pack.path} is damaged",
            problems=[f"sha256 of the rows: {found[:16]}, not {pack.ledger.rows_sha256[:16]}"],
            remedy="Delete the artifact and run again; it will be rebuilt.",
        )


def is_beginning(small: PackView, large: PackView) -> bool:
    """Whether a training on `large` begins with exactly the tokens of `small`.

    All rows of `small` but the last are compared by hash; the last one, which its budget may have
    cut, token by token without its padding.
    """
    last = len(small) - 1
    if small.sequence_length != large.sequence_length or not 0 <= last < len(large):
        return False
    real = (np.asarray(small.flags[last]) & PADDING) == 0
    same_last = all(
        (np.asarray(ours[last])[real] == np.asarray(theirs[last])[real]).all()
        for ours, theirs in ((small.ids, large.ids), (small.flags, large.flags))
    )
    return bool(same_last) and rows_sha256(small, last) == rows_sha256(large, last)
