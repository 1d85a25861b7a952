"""Encoded documents with their counts, and their cache files.

A token file is one JSON line (what it holds, for whom, and the sha256 of the rest), then lengths_D
and characters_D (int64), uses_U3 (int64), ids_N (uint32) and, where loss is not on all but first
tokens, loss_N (bool), all little endian. It appears whole or not at all, and is checked before it
is used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from cpt_residual.core.files import replacing
from cpt_residual.modeling.encoded import EncodedDocuments, Lengths

_HASHED_BYTES = 1 << 20


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
    arrays: list[npt.NDArray[np.generic]] = [
        documents.lengths.astype("<i8", copy=False),
        block.characters.astype("<i8", copy=False),
        documents.uses.astype("<i8", copy=False),
        documents.ids.astype("<u4", copy=False),
    ]
    if documents.loss is not None:
        arrays.append(documents.loss)
    digest = hashlib.sha256()
    for part in arrays:
        digest.update(part.data)
    header = {
        "key": key,
        "num_documents": len(documents),
        "num_tokens": len(documents.ids),
        "num_uses": len(documents.uses),
        "has_loss": documents.loss is not None,
        "sha256": digest.hexdigest(),
    }
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            for part in arrays:
                file.write(part.data)
    except OSError as error:
        error.filename = str(path)  # a write does not say which file it was
        raise


def read_tokens(path: Path) -> TokenBlock:
    """The content of a token file that is known to be whole."""
    with path.open("rb") as file:
        header = _header(file)
        num_documents, num_tokens, num_uses = (cast("int", header[f"num_{n}"]) for n in _COUNTS)
        lengths = np.fromfile(file, dtype="<i8", count=num_documents)
        characters = np.fromfile(file, dtype="<i8", count=num_documents)
        uses = np.fromfile(file, dtype="<i8", count=3 * num_uses).reshape(-1, 3)
        ids = np.fromfile(file, dtype="<u4", count=num_tokens)
        has_loss = header["has_loss"]
        loss = np.fromfile(file, dtype=np.bool_, count=num_tokens) if has_loss else None
    return TokenBlock(EncodedDocuments(ids, lengths, loss, uses), characters)


_COUNTS = ("documents", "tokens", "uses")


def tokens_are_whole(path: Path, *, key: str) -> bool:
    """Whether `path` is the token file that answers to `key`, and its bytes are those written."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            header = _header(file)
            while part := file.read(_HASHED_BYTES):
                digest.update(part)
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return header.get("key") == key and header.get("sha256") == digest.hexdigest()


def _header(file: BinaryIO) -> dict[str, object]:
    header: object = json.loads(file.readline())
    if not isinstance(header, dict):
        raise ValueError("the first line is no object")  # noqa: TRY004  as for what is no JSON
    return cast("dict[str, object]", header)
