"""Streaming decompression (gzip, zstd).

The end of a file's name says how it is read. Content that contradicts the name is an error of one
line for the file, where a reader would find something wrong with every row.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Generator
from typing import Any, cast

from cpt_residual.data.readers.base import SourceFile
from cpt_residual.data.readers.files import COMPRESSIONS

_BUFFER_BYTES = 1 << 20

_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_ZSTD_SKIPPABLE = tuple(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))
_OTHER_CONTENT = {
    b"PAR1\x15": "Parquet: name it `.parquet`",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xfd7zXZ\x00": "xz: unpack it",
    b"BZh91AY&SY": "bzip2: unpack it",
    b"\xff\xfe\x00\x00": "UTF-32: convert it, `iconv -f UTF-32 -t UTF-8`",
    b"\xff\xfe": "UTF-16: convert it, `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16: convert it, `iconv -f UTF-16 -t UTF-8`",
}


@contextlib.contextmanager
def open_bytes(source: SourceFile) -> Generator[io.BufferedReader]:
    """Read `source`; several compressed members or frames in a row are one stream, and zeros after
    the last gzip member are padding.

    Raises `OSError`, also while it is read: for damaged and truncated files, and for content that
    is not what the name says.
    """
    codec = next((name for end, name in COMPRESSIONS.items() if source.suffix.endswith(end)), None)
    with source.path.open("rb") as file:
        if codec is None:
            _check_text(file)
            yield file
            return
        start = file.peek(4)[:4]
        if not start.startswith(_MAGIC[codec]) and start not in _ZSTD_SKIPPABLE:
            raise OSError(f"the name says {codec}, which the content is not: rename it")
        with _unpacked(file, codec) as unpacked:
            _check_text(unpacked)
            yield unpacked


@contextlib.contextmanager
def _unpacked(file: io.BufferedReader, codec: str) -> Generator[io.BufferedReader]:
    if codec == "gzip":
        try:
            # Python's: pyarrow takes padding for a damaged member.
            with gzip.GzipFile(fileobj=file) as stream:
                yield io.BufferedReader(cast("Any", stream), _BUFFER_BYTES)
        except (EOFError, zlib.error) as error:
            raise OSError(str(error)) from error
        return
    import pyarrow as pa  # it notices a missing end, which Python's zstandard does not

    with cast("Any", pa).CompressedInputStream(file, codec) as stream:
        # Not closed here: pyarrow's stream closes once, and the block above does it.
        yield io.BufferedReader(stream, _BUFFER_BYTES)


def _check_text(file: io.BufferedReader) -> None:
    """Raise `OSError` for what begins like another kind of content than UTF-8."""
    start = file.peek(16)[:16]
    for codec, magic in _MAGIC.items():
        if start.startswith(magic):
            ending = next(end for end, name in COMPRESSIONS.items() if name == codec)
            raise OSError(f"the content is {codec}, which the name does not say: add `{ending}`")
    for magic, what in _OTHER_CONTENT.items():
        if start.startswith(magic):
            raise OSError(f"the content is {what}")
    zeros = [byte == 0 for byte in start[:4]]
    if zeros in ([True, False] * 2, [False, True] * 2):
        order = "BE" if zeros[0] else "LE"
        raise OSError(f"the content is UTF-16: convert it, `iconv -f UTF-16{order} -t UTF-8`")


def file_words(source: SourceFile) -> str:
    """Where byte offsets count: `the file`, or what it unpacks to."""
    packed = source.suffix.endswith(tuple(COMPRESSIONS))
    return "the unpacked file" if packed else "the file"


def read_error(source: SourceFile, error: OSError) -> str:
    """One line for a file that ends too early, is damaged, or is not what its name says."""
    reason = " ".join((error.strerror or str(error)).split()) or type(error).__name__
    return f"{source.path}: cannot be read: {reason}"
