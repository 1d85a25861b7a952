"""The bytes of a file as they were before it was compressed, in constant memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator
from typing import Any, cast

from cpt_residual.data.files import COMPRESSIONS
from cpt_residual.data.readers.rows import SourceFile

__all__ = ["file_words", "open_bytes", "read_error"]

_BUFFER_BYTES = 1 << 20


@contextlib.contextmanager
def open_bytes(source: SourceFile) -> Generator[io.BufferedReader]:
    """Read `source`; several compressed members or frames in a row are one stream.

    Damaged and truncated files raise `OSError` while they are read (pyarrow notices a missing end,
    which Python's zstandard takes for the end of the file).
    """
    codec = next((name for end, name in COMPRESSIONS.items() if source.suffix.endswith(end)), None)
    if codec is None:
        with source.path.open("rb") as file:
            yield file
        return
    import pyarrow as pa

    arrow = cast("Any", pa)
    with (
        arrow.OSFile(str(source.path)) as packed,
        arrow.CompressedInputStream(packed, codec) as unpacked,
    ):
        # Not closed here: pyarrow's stream closes once, and the block above does it.
        yield io.BufferedReader(unpacked, _BUFFER_BYTES)


def file_words(source: SourceFile) -> str:
    """Where byte offsets count: `the file`, or what it unpacks to."""
    packed = source.suffix.endswith(tuple(COMPRESSIONS))
    return "the unpacked file" if packed else "the file"


def read_error(source: SourceFile, error: OSError) -> str:
    """One line for a file that ends too early or is damaged."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{source.path}: cannot be read: {reason}"
