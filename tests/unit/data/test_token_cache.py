from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from cpt_residual.data.tokenize.token_cache import tokens_are_whole

ARRAYS = {"lengths": [1], "characters": [1], "uses": [0], "ids": [5]}


def test_only_a_file_with_all_members_and_sound_bytes_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    np.savez(path, key=np.array("k"), **{n: np.array(v) for n, v in ARRAYS.items()})
    assert tokens_are_whole(path, key="k")
    assert not tokens_are_whole(path, key="other")
    whole = path.read_bytes()
    for position in range(len(whole)):  # an answer for every damaged byte, never an exception
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        tokens_are_whole(path, key="k")


@pytest.mark.parametrize("missing", ARRAYS)
def test_a_file_without_a_member_is_not_whole(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "tokens.npz"
    rest = {name: np.array(value) for name, value in ARRAYS.items() if name != missing}
    np.savez(path, key=np.array("k"), **rest)
    assert zipfile.is_zipfile(path)
    assert not tokens_are_whole(path, key="k")
