"""The sha256 of a file is that of its bytes, however it is read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cpt_residual.weights.io import direct, file_hash
from cpt_residual.weights.io.file_hash import file_sha256

PIECE = 3 * direct.PAGE


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 7 * PIECE, 7 * PIECE + 100])
@pytest.mark.parametrize("cached", [True, False])
def test_every_byte_counts_once(
    size: int, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_LARGE_FILE", 1)
    monkeypatch.setattr(direct, "_WORTH_IT", 1)
    monkeypatch.setattr(file_hash, "_PIECE", PIECE)
    content, path = os.urandom(size), tmp_path / "file"
    path.write_bytes(content)
    (tmp_path / "link").symlink_to(path)
    if not cached:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    assert file_sha256(tmp_path / "link") == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "file")
