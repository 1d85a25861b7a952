"""Encoded documents with their counts, and the files they wait in.

A token file is an uncompressed .npz: `key` (whose ids these are, and of which lines), lengths_D,
characters_D, uses_U3 and ids_N of `TokenBlock`, and loss_N where loss is not on all but first
tokens. It appears whole or not at all, and the checksums of the zip format tell a damaged one.
"""

from __future__ import annotations

import errno
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt_residual.core.files import replacing
from cpt_residual.modeling.encoded import EncodedDocuments, Lengths

_ARRAYS = ("characters", "ids", "key", "lengths", "uses")
_MEMBERS = tuple(sorted(f"{name}.npy" for name in names) for names in (_ARRAYS, (*_ARRAYS, "loss")))
_DAMAGED = (FileNotFoundError, ValueError, KeyError, EOFError, RuntimeError)
"""What a missing or damaged file raises (RuntimeError: it seems encrypted, or of a later zip)."""


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Consecutive documents of a source and their characters_D."""

    documents: EncodedDocuments
    characters: Lengths

    @classmethod
    def joined(cls, parts: Sequence[TokenBlock]) -> TokenBlock:
        """The documents of all parts (at least one), in order."""
        return cls(
            EncodedDocuments.joined([part.documents for part in parts]),
            np.concatenate([part.characters for part in parts]),
        )


def write_tokens(path: Path, block: TokenBlock, *, key: str) -> None:
    """Write `block` as the token file that answers to `key`."""
    documents = block.documents
    arrays: dict[str, Any] = {
        "key": np.array(key),
        "lengths": documents.lengths,
        "characters": block.characters,
        "uses": documents.uses,
        "ids": documents.ids,
    }
    if documents.loss is not None:
        arrays["loss"] = documents.loss
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        error.filename = str(path)  # a write does not say which file it was
        raise


def read_tokens(path: Path) -> TokenBlock:
    """The content of a token file that is known to be whole."""
    with np.load(path) as arrays:
        loss = arrays.get("loss")
        documents = EncodedDocuments(arrays["ids"], arrays["lengths"], loss, arrays["uses"])
        return TokenBlock(documents, arrays["characters"])


def tokens_are_whole(path: Path, *, key: str) -> bool:
    """Whether `path` is the token file that answers to `key`, and its bytes are those written."""
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(file.namelist())
            if file.testzip() is not None or names not in _MEMBERS:
                return False
        with np.load(path) as arrays:
            return str(arrays["key"]) == key
    except (*_DAMAGED, zipfile.BadZipFile, zlib.error):
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:  # the file names an offset that no file has
            return False
        raise
