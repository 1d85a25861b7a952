"""Direct input and output give the bytes that ordinary ones give, wherever the pieces lie."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_residual.weights import reader
from cpt_residual.weights.delta import StoredDelta
from cpt_residual.weights.io import direct
from cpt_residual.weights.io.direct import PAGE, InputFile, OutputFile, Scratch
from cpt_residual.weights.merge import Output, merge
from cpt_residual.weights.residual import compute
from cpt_residual.weights.residual_format import open_residual
from support.merge_family import Family

SHAPES = {
    "model.embed_tokens.weight": (301, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.mlp.up_proj.weight": (97, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 65),
    "lm_head.weight": (301, 64),
}
many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.integers(1, 5 * PAGE)


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_LARGE_FILE", 1)
    monkeypatch.setattr(direct, "_WORTH_IT", 1)
    monkeypatch.setattr(direct, "_WINDOW", 2 * PAGE)


def evict(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


@pytest.fixture
def direct_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the system calls that were made for files opened with O_DIRECT."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no direct input and output where temporary files are: {error}")
    calls: set[str] = set()
    files: set[int] = set()
    real = {name: getattr(os, name) for name in ("open", "preadv", "pwritev")}

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        file = real["open"](path, flags, mode)
        (files.add if flags & os.O_DIRECT else files.discard)(file)
        return file

    def called(name: str) -> Callable[[int, object, int], int]:
        def call(file: int, memory: object, offset: int) -> int:
            calls.update({name} if file in files else ())
            return real[name](file, memory, offset)

        return call

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", called("preadv"))
    monkeypatch.setattr(os, "pwritev", called("pwritev"))
    return calls


def content(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


@given(size=sizes, data=st.data())
@many
def test_pieces_written_in_any_order_make_the_file(
    tmp_path: Path, size: int, data: st.DataObject
) -> None:
    expected = content(size)
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=6))})
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    path, scratch = tmp_path / "file", Scratch()
    path.unlink(missing_ok=True)
    file = OutputFile(path, size)
    for start, stop in pieces:
        values = scratch.array(stop - start, np.dtype(np.uint8), offset=start)
        values[:] = expected[start:stop]
        file.write(values, start)
    file.flush()
    file.close()
    assert path.read_bytes() == expected.tobytes()


@given(size=sizes, data=st.data(), cached=st.booleans())
@many
def test_any_piece_is_read_as_it_is(
    tmp_path: Path, size: int, data: st.DataObject, *, cached: bool
) -> None:
    expected, path, scratch = content(size), tmp_path / "file", Scratch()
    path.write_bytes(expected.tobytes())
    if not cached:
        evict(path)
    file = InputFile(path, size)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start, size))
    room = scratch.room(start, stop - start)
    assert file.read(room) == stop - start
    assert room.values.tobytes() == expected[start:stop].tobytes()
    file.close()


def test_whole_pages_go_directly(tmp_path: Path, direct_calls: set[str]) -> None:
    size = 8 * PAGE
    scratch, path = Scratch(), tmp_path / "file"
    out = OutputFile(path, size)
    values = scratch.array(size - 10, np.dtype(np.uint8), offset=10)
    values[:] = 3
    out.write(values, 10)
    assert direct_calls == {"pwritev"}
    out.flush()
    out.close()
    evict(path)
    file = InputFile(path, size)
    assert file.read(scratch.room(10, size - 10)) == size - 10
    assert direct_calls == {"pwritev", "preadv"}
    file.close()


def test_what_is_read_again_goes_through_the_cache(tmp_path: Path, direct_calls: set[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    evict(path)
    file = InputFile(path, 8 * PAGE, once=False)
    assert file.read(Scratch().room(0, 8 * PAGE)) == 8 * PAGE
    assert not direct_calls
    file.close()


def test_a_read_that_gives_less_than_was_asked_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, path = content(8 * PAGE), tmp_path / "file"
    path.write_bytes(expected.tobytes())
    evict(path)
    file, real = InputFile(path, 8 * PAGE), os.preadv

    def short(number: int, memory: list[memoryview], offset: int) -> int:
        return real(number, [memory[0][: min(memory[0].nbytes, 1000)]], offset)

    monkeypatch.setattr(os, "preadv", short)
    room = Scratch().room(100, 7 * PAGE)
    assert file.read(room) == 7 * PAGE
    assert room.values.tobytes() == expected[100 : 100 + 7 * PAGE].tobytes()
    file.close()


def test_a_file_that_ends_early_says_how_far_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE + 10))
    file = InputFile(path, PAGE + 10)
    path.write_bytes(bytes(100))
    evict(path)
    assert file.read(Scratch().room(50, PAGE)) == 50
    assert file.read(Scratch().room(3 * PAGE, 10)) == 0
    file.close()


def test_memory_that_does_not_fit_the_pages_is_written_all_the_same(tmp_path: Path) -> None:
    values = content(3 * PAGE)
    file = OutputFile(tmp_path / "file", 3 * PAGE + 1)
    file.write(values, 1)
    file.close()
    assert (tmp_path / "file").read_bytes()[1:] == values.tobytes()


def test_what_the_file_system_refuses_is_done_the_ordinary_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_read, real_write = os.open, os.preadv, os.pwritev
    direct_files: set[int] = set()

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        file = real_open(path, flags & ~os.O_DIRECT, mode)
        (direct_files.add if flags & os.O_DIRECT else direct_files.discard)(file)
        return file

    def refused(file: int) -> None:
        if file in direct_files:
            raise OSError(errno.EINVAL, "no direct input and output")

    def preadv(file: int, memory: list[memoryview], offset: int) -> int:
        refused(file)
        return real_read(file, memory, offset)

    def pwritev(file: int, memory: list[memoryview], offset: int) -> int:
        refused(file)
        return real_write(file, memory, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwritev", pwritev)
    scratch, expected = Scratch(), content(4 * PAGE)
    out = OutputFile(tmp_path / "file", 4 * PAGE)
    values = scratch.array(4 * PAGE, np.dtype(np.uint8))
    values[:] = expected
    out.write(values, 0)
    out.flush()
    out.close()
    evict(tmp_path / "file")
    file = InputFile(tmp_path / "file", 4 * PAGE)
    room = scratch.room(0, 4 * PAGE)
    assert direct_files
    assert file.read(room) == 4 * PAGE
    assert room.values.tobytes() == expected.tobytes()
    file.close()


def test_threads_have_memory_of_their_own() -> None:
    scratch, found = Scratch(), list[int]()
    mine = scratch.room(0, 10).values
    mine[:] = 7
    other = threading.Thread(target=lambda: scratch.room(0, 10).values.fill(9))
    other.start()
    other.join()
    found.extend(mine.tolist())
    assert found == [7] * 10


@pytest.mark.parametrize(("fetched", "block"), [(1000, 300), (1 << 21, 4096), (4096, 4096)])
def test_models_are_merged_to_the_same_bytes_from_a_cold_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    family = Family(
        tmp_path,
        {
            name: torch.randn(shape, generator=generator).bfloat16()
            for name, shape in SHAPES.items()
        },
    )
    outputs: list[dict[str, bytes]] = []
    for large in (1, 1 << 40):
        monkeypatch.setattr(direct, "_LARGE_FILE", large)
        if large == 1:
            monkeypatch.setattr(reader, "BLOCK", block)
            monkeypatch.setattr("cpt_residual.weights.shard_work.FETCHED", fetched)
            monkeypatch.setattr("cpt_residual.weights.residual.FETCHED", fetched)
        else:
            monkeypatch.setattr(reader, "BLOCK", 1 << 18)
        for path in tmp_path.rglob("*.safetensors"):
            evict(path)
        root, target = tmp_path / f"out{large}", family.open("cpt")
        compute(family.open("base"), family.open("instruct"), root / "residual")
        stored = StoredDelta(open_residual(root / "residual"))
        merge(target, stored, [Output(1.0, root / "stored"), Output(0.5, root / "half")])
        merge(target, family.pair, [Output(1.0, root / "direct")])
        outputs.append(
            {
                str(path.relative_to(root)): path.read_bytes()
                for path in sorted(root.rglob("*.safetensors"))
            }
        )
    assert outputs[0] == outputs[1]
    for name, stored_bytes in outputs[0].items():
        if name.startswith("stored/"):
            assert stored_bytes == outputs[0][name.replace("stored/", "direct/")]


def test_a_read_from_the_cache_brings_in_no_more_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system reads ahead would be found in the cache, read ordinarily, and bring in more:
    no file would ever be read directly."""
    path = tmp_path / "large"
    path.write_bytes(bytes(1024 * PAGE))
    evict(path)
    probe = os.open(path, os.O_RDONLY)
    try:
        if cached_pages(probe, 1024).any():
            pytest.skip("no way to drop pages of temporary files from the cache")
        file = InputFile(path, 1024 * PAGE)
        if file._direct is None:
            pytest.skip("no direct input where temporary files are")
        all_there = np.packbits(np.ones(2, dtype=np.uint8))
        file._resident = dict.fromkeys(range(0, 1024 * PAGE, 2 * PAGE), all_there)
        for offset in (0, 64 * PAGE):
            assert file.read(Scratch().room(offset, 64 * PAGE)) == 64 * PAGE
        file.close()
        time.sleep(0.2)  # what is read ahead arrives later
        pages = cached_pages(probe, 1024)
        assert pages[:128].all()
        assert not pages[128:144].any()
    finally:
        os.close(probe)


@given(
    num_bytes=st.integers(1, 9 * PAGE),
    cached=st.lists(st.booleans(), min_size=9, max_size=9),
    data=st.data(),
)
@many
def test_what_is_mostly_in_the_cache_is_read_from_there(
    tmp_path: Path, num_bytes: int, cached: list[bool], data: st.DataObject
) -> None:
    """Wherever the windows that the system is asked about end."""
    path = tmp_path / "file"
    path.write_bytes(bytes(num_bytes))
    start = data.draw(st.integers(0, num_bytes - 1))
    stop = data.draw(st.integers(start + 1, num_bytes))
    asked: list[tuple[int, int]] = []

    def resident(file: int, first: int, size: int) -> np.ndarray:
        asked.append((first, size))
        return np.array(cached[first // PAGE :][: -(-size // PAGE)], dtype=np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "_resident_pages", resident)
        file = InputFile(path, num_bytes)
        if file._direct is None:
            file.close()
            pytest.skip("no direct input where temporary files are")
        pages = cached[start // PAGE : -(-stop // PAGE)]
        room = Scratch().room(start, stop - start)
        assert file._is_direct(room) == (2 * sum(pages) < len(pages))
        again = len(asked)
        file._is_direct(room)
        assert len(asked) == again, "it is asked once"
        assert all(first % (2 * PAGE) == 0 and size <= 2 * PAGE for first, size in asked)
        file.close()


def cached_pages(file: int, num_pages: int) -> np.ndarray:
    return direct._resident_pages(file, 0, num_pages * PAGE)


@pytest.mark.parametrize("size", [PAGE, direct._HUGE_PAGE - 1, direct._HUGE_PAGE, 5 << 20])
@pytest.mark.parametrize("huge", [True, False])
def test_memory_begins_at_a_page_with_or_without_huge_ones(
    size: int, huge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not huge:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = direct._page_aligned(size)
    assert memory.size == size
    step = direct._HUGE_PAGE if size >= direct._HUGE_PAGE else PAGE
    assert memory.ctypes.data % step == 0
    memory[:] = 7
    assert int(memory[-1]) == 7


def test_many_edges_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_MOST_EDGES", 8)
    size, step = 40 * PAGE, PAGE + 100
    expected, scratch = content(size), Scratch()
    file = OutputFile(tmp_path / "file", size)
    for start in range(0, size, step):
        part = expected[start : start + step]
        values = scratch.array(part.size, np.dtype(np.uint8), offset=start)
        values[:] = part
        file.write(values, start)
        assert len(file._edges) < 8
    file.flush()
    file.close()
    assert (tmp_path / "file").read_bytes() == expected.tobytes()


def write_piece(file: OutputFile, expected: np.ndarray, start: int, stop: int) -> None:
    values = Scratch().array(stop - start, np.dtype(np.uint8), offset=start)
    values[:] = expected[start:stop]
    file.write(values, start)


def test_a_page_of_two_pieces_is_written_with_the_second(
    tmp_path: Path, direct_calls: set[str]
) -> None:
    """An ordinary write in between would wait for the direct ones of other threads."""
    path, size = tmp_path / "file", 6 * PAGE
    expected = content(size)
    file = OutputFile(path, size)
    write_piece(file, expected, 100, 3 * PAGE + 7)
    early = path.read_bytes()
    assert early[PAGE : 3 * PAGE] == expected[PAGE : 3 * PAGE].tobytes()
    assert not any(early[:PAGE] + early[3 * PAGE :])
    write_piece(file, expected, 3 * PAGE + 7, size)
    assert path.read_bytes()[PAGE:] == expected[PAGE:].tobytes()
    assert list(file._edges) == [0], "the first page lacks its first bytes"
    assert direct_calls == {"pwritev"}
    write_piece(file, expected, 0, 100)
    file.flush()
    file.close()
    assert path.read_bytes() == expected.tobytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_a_piece_may_complete_the_pages_at_both_ends(
    order: tuple[int, ...], tmp_path: Path, direct_calls: set[str]
) -> None:
    path, size = tmp_path / "file", 9 * PAGE
    expected = content(size)
    cuts = [(0, 3 * PAGE - 50), (3 * PAGE - 50, 6 * PAGE + 1), (6 * PAGE + 1, size)]
    file = OutputFile(path, size)
    for number in order:
        write_piece(file, expected, *cuts[number])
    assert direct_calls == {"pwritev"}
    assert not file._edges
    assert path.read_bytes() == expected.tobytes()
    file.close()


@pytest.mark.parametrize("taken", [0, 1000, PAGE])
def test_pages_of_two_pieces_survive_direct_writes_that_fail_or_stop_short(
    taken: int, tmp_path: Path, direct_calls: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that takes no direct write, or less than it is given."""
    path, size, real = tmp_path / "file", 9 * PAGE, os.pwritev
    expected = content(size)
    file = OutputFile(path, size)
    refused = file._direct

    def pwritev(number: int, memory: list[memoryview], offset: int) -> int:
        if number != refused:
            return real(number, memory, offset)
        if not taken or offset % PAGE or any(part.nbytes % PAGE for part in memory):
            raise OSError(errno.EINVAL, "not whole pages")
        done = os.pwrite(file._file, memory[0][:taken], offset)
        os.fsync(file._file)
        return done

    monkeypatch.setattr(os, "pwritev", pwritev)
    for start, stop in [(50, 3 * PAGE + 5), (6 * PAGE + 1, size), (3 * PAGE + 5, 6 * PAGE + 1)]:
        write_piece(file, expected, start, stop)
    write_piece(file, expected, 0, 50)
    file.flush()
    file.close()
    assert path.read_bytes() == expected.tobytes()


def test_writes_that_come_in_parts_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may take less than it is given, in the middle of a piece of memory."""
    real = os.pwritev

    def pwritev(file: int, memory: list[memoryview], offset: int) -> int:
        return real(file, [memory[0][:3]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    direct._write_fully(file, [memoryview(piece) for piece in (b"abcd", b"efg", b"h")], 2)
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b"\0\0abcdefgh"
