"""Hashes over the first rows of a pack: are its bytes whole, and is it the beginning of another."""

from __future__ import annotations

import hashlib

import numpy as np

from cpt_residual.data.pack_format import PackView, hashed_bytes
from cpt_residual.data.rows import PADDING
from cpt_residual.errors import CorruptArtifactError

__all__ = ["check_rows", "is_beginning", "rows_sha256"]

_TOKENS_AT_ONCE = 1 << 20


def rows_sha256(pack: PackView, num_rows: int) -> str:
    """The hash over the first `num_rows` rows, as the ledger's marks have it. Reads these rows."""
    assert 0 <= num_rows <= len(pack), "a pack has no such row"
    digest = hashlib.sha256()
    step = max(_TOKENS_AT_ONCE // pack.sequence_length, 1)
    for first in range(0, num_rows, step):
        part = slice(first, min(first + step, num_rows))
        digest.update(hashed_bytes(np.asarray(pack.ids[part]), np.asarray(pack.flags[part])))
    return digest.hexdigest()


def check_rows(pack: PackView) -> None:
    """Raise CorruptArtifactError unless the rows are those that were written. Reads all."""
    found = rows_sha256(pack, len(pack))
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
