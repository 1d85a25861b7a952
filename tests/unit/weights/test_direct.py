"""Direct input and output give the bytes that ordinary ones give, wherever the pieces lie."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_residual.weights.io import direct
from cpt_residual.weights.io.direct import PAGE, InputFile, OutputFile, Scratch
from cpt_residual.weights.io.file_hash import file_sha256
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import StoredDelta
from support.merge_family import Family

SHAPES = {
    "model.embed_tokens.weight": (1301, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.mlp.up_proj.weight": (997, 64),
    "lm_head.weight": (1301, 64),
}
SIZE = 40 * PAGE + 123  # direct from 16 pages on
many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
DirectCalls = list[str]


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LARGE_FILE", 1)


def evict(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


@pytest.fixture
def direct_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectCalls:
    """The system calls that are made for files opened with O_DIRECT, by name."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no direct input and output where temporary files are: {error}")
    calls: DirectCalls = []
    watch(monkeypatch, lambda name, _: calls.append(name))
    return calls


def watch(monkeypatch: pytest.MonkeyPatch, before: Callable[[str, int], None]) -> None:
    """`before` is given the name of each system call for a file opened with O_DIRECT, and how many
    bytes it is for; what it raises, the call raises."""
    files: set[int] = set()
    real = {name: getattr(os, name) for name in ("open", "preadv", "pwritev")}

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            before("open", 0)
        file = real["open"](path, flags, mode)
        (files.add if flags & os.O_DIRECT else files.discard)(file)
        return file

    def called(name: str) -> Callable[[int, list[memoryview], int], int]:
        def call(file: int, memory: list[memoryview], offset: int) -> int:
            if file in files:
                before(name, sum(part.nbytes for part in memory))
            return real[name](file, memory, offset)

        return call

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", called("preadv"))
    monkeypatch.setattr(os, "pwritev", called("pwritev"))


def content(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


def written(path: Path, expected: np.ndarray, pieces: list[tuple[int, int]]) -> bytes:
    path.unlink(missing_ok=True)
    file, scratch = OutputFile(path, expected.size), Scratch()
    for start, stop in pieces:
        values = scratch.array(stop - start, np.dtype(np.uint8), offset=start)
        values[:] = expected[start:stop]
        file.write(values, start)
    file.flush()
    file.close()
    return path.read_bytes()


def read(path: Path, size: int, start: int, stop: int, *, once: bool = True) -> bytes:
    evict(path)
    file, room = InputFile(path, size, once=once), Scratch().room(start, stop - start)
    assert file.read(room) == stop - start
    file.close()
    return room.values.tobytes()


@given(size=st.integers(1, SIZE), data=st.data())
@many
def test_pieces_in_any_order_make_the_file_and_are_read_as_they_are(
    tmp_path: Path, size: int, data: st.DataObject
) -> None:
    expected, path = content(size), tmp_path / "file"
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    assert written(path, expected, pieces) == expected.tobytes()
    for start, stop in pieces:
        assert read(path, size, start, stop) == expected[start:stop].tobytes()
    assert file_sha256(path) == hashlib.sha256(expected.tobytes()).hexdigest()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_but_the_two_ends_goes_directly(
    order: tuple[int, int], tmp_path: Path, direct_calls: DirectCalls
) -> None:
    """The page that two pieces share too: an ordinary write waits for all direct ones."""
    cuts = [(50, 20 * PAGE + 7), (20 * PAGE + 7, SIZE)]
    expected, path = content(), tmp_path / "file"
    expected[:50] = 0
    assert written(path, expected, [cuts[number] for number in order]) == expected.tobytes()
    assert direct_calls == ["open", "pwritev", "pwritev"]
    assert read(path, SIZE, 50, SIZE) == expected[50:].tobytes()
    assert set(direct_calls[3:]) == {"open", "preadv"}


def test_what_is_read_again_or_by_order_goes_through_the_cache(
    tmp_path: Path, direct_calls: DirectCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, path = content(), tmp_path / "file"
    path.write_bytes(expected.tobytes())
    assert read(path, SIZE, 0, SIZE, once=False) == expected.tobytes()
    monkeypatch.setenv("CPT_RESIDUAL_DIRECT_IO", "0")
    assert read(path, SIZE, 0, SIZE) == expected.tobytes()
    assert written(path, expected, [(0, SIZE)]) == expected.tobytes()
    assert direct_calls == []


@pytest.mark.parametrize("refused", ["open", "preadv", "pwritev"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_gets_ordinary_calls(
    refused: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the file's opening, as tmpfs of older kernels does, or only when it is used."""
    refusals: list[str] = []

    def before(name: str, _: int) -> None:
        if name == refused:
            refusals.append(name)
            raise OSError(number, "no direct input and output")

    expected, path = content(), tmp_path / "file"
    path.write_bytes(b"")
    watch(monkeypatch, before)
    assert written(path, expected, [(0, 9 * PAGE), (9 * PAGE, SIZE)]) == expected.tobytes()
    assert read(path, SIZE, 100, SIZE) == expected[100:].tobytes()
    assert file_sha256(path) == hashlib.sha256(expected.tobytes()).hexdigest()
    assert refusals or refused != "open"


def test_another_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def before(name: str, _: int) -> None:
        if name == "open":
            raise OSError(errno.EIO, "the disk is broken")

    (tmp_path / "file").write_bytes(content().tobytes())
    watch(monkeypatch, before)
    with pytest.raises(OSError, match="the disk is broken"):
        InputFile(tmp_path / "file", SIZE)


@pytest.mark.parametrize("most", [3, 1000, PAGE, 5 * PAGE])
def test_calls_that_do_less_than_they_were_asked_go_on(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def preadv(file: int, memory: list[memoryview], offset: int) -> int:
        return real_read(file, [memory[0][: max(most, 1000)]], offset)

    def pwritev(file: int, memory: list[memoryview], offset: int) -> int:
        return real_write(file, [memory[0][: max(most, 1000)]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwritev", pwritev)
    expected, path = content(), tmp_path / "file"
    assert written(path, expected, [(0, SIZE)]) == expected.tobytes()
    assert read(path, SIZE, 100, SIZE) == expected[100:].tobytes()


def test_a_file_that_ends_early_says_how_far_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    file = InputFile(path, SIZE)
    path.write_bytes(bytes(100))
    evict(path)
    assert file.read(Scratch().room(50, 20 * PAGE)) == 50
    assert file.read(Scratch().room(30 * PAGE, 10)) == 0
    file.close()


def test_models_are_merged_to_the_same_bytes_from_a_cold_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()
    }
    family, outputs = Family(tmp_path, tensors), list[dict[str, bytes]]()
    for wanted in ("1", "0"):
        monkeypatch.setenv("CPT_RESIDUAL_DIRECT_IO", wanted)
        for path in tmp_path.rglob("*.safetensors"):
            evict(path)
        root, target = tmp_path / f"out{wanted}", family.open("cpt")
        compute(family.open("base"), family.open("instruct"), root / "residual")
        stored = StoredDelta(open_residual(root / "residual"))
        merge(target, stored, [Output(1.0, root / "stored"), Output(0.5, root / "half")])
        merge(target, family.pair, [Output(1.0, root / "direct")])
        paths = sorted(root.rglob("*.safetensors"))
        outputs.append({str(path.relative_to(root)): path.read_bytes() for path in paths})
    assert outputs[0] == outputs[1]
