"""Kernels are compiled once on a machine, and what is kept is used only when it is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cpt_residual.weights import kernel_compiler, native

ONES = np.ones(20)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept, empty; nothing of this process is known any more."""
    monkeypatch.setattr(native, "_folders", lambda: iter([tmp_path / "first", tmp_path / "second"]))
    monkeypatch.setattr(native, "_kernels", {})
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were compiled."""
    names, real = list[str](), kernel_compiler.compile_kernel

    def compile_kernel(name: str, dtypes: str, machine: object) -> bytes:
        names.append(name)
        return real(name, dtypes, machine)

    monkeypatch.setattr(kernel_compiler, "compile_kernel", compile_kernel)
    return names


def dot() -> float:
    sums, counts = native.run("dot", ONES, ONES, num_sums=1)
    assert not counts
    return sums[0]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_kernels", {})


def test_a_kernel_is_compiled_once(
    folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dot() == dot() == 20.0
    forget(monkeypatch)
    assert dot() == 20.0
    assert compiled == ["dot"]
    (kept,) = (folder / "first").iterdir()
    assert kept.name.startswith("dot-dddd-")


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_what_is_not_whole_is_compiled_again(
    damage: bytes | None, folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dot()
    (kept,) = (folder / "first").iterdir()
    raw = bytearray(kept.read_bytes())
    raw[len(raw) // 2] ^= 1
    kept.write_bytes(bytes(raw) if damage is None else damage)
    forget(monkeypatch)
    assert dot() == 20.0
    assert compiled == ["dot", "dot"]
    forget(monkeypatch)
    assert dot() == 20.0
    assert compiled == ["dot", "dot"], "what was damaged has been replaced"


def test_a_place_that_cannot_be_written_is_passed_over(folder: Path) -> None:
    (folder / "first").write_text("not a folder")
    assert dot() == 20.0
    assert len(list((folder / "second").iterdir())) == 1


def test_nothing_needs_to_be_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folders", lambda: iter(()))
    assert dot() == 20.0
    assert not list(folder.iterdir())


@pytest.fixture
def identity() -> Iterator[str]:
    native._identity.cache_clear()
    yield native._identity()
    native._identity.cache_clear()


def test_another_source_is_another_kernel(
    identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in native._SOURCES:
        shutil.copy(native._HERE / source, tmp_path)
    monkeypatch.setattr(native, "_HERE", tmp_path)
    native._identity.cache_clear()
    assert native._identity() == identity
    for source in native._SOURCES:
        with (tmp_path / source).open("a") as stream:
            stream.write("# changed\n")
        native._identity.cache_clear()
        assert native._identity() != identity
        shutil.copy(Path(native.__file__).parent / source, tmp_path)


def test_numba_is_not_imported_for_a_kernel_that_is_there() -> None:
    code = """
import sys
import numpy as np
from cpt_residual.weights import kernels, native
native.prepare()
print(kernels.dot(np.ones(20), np.ones(20)), "numba" in sys.modules)
"""
    kernels = [sys.executable, "-c", code]
    subprocess.run(kernels, check=True)
    found = subprocess.run(kernels, check=True, capture_output=True, text=True).stdout
    assert found == "20.0 False\n"


def test_what_somebody_else_has_put_there_is_not_run(
    folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dot()
    (kept,) = (folder / "first").iterdir()
    forget(monkeypatch)
    if os.geteuid() == 0:
        os.chown(kept, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)
    assert dot() == 20.0
    assert compiled == ["dot", "dot"]


def test_memory_that_machine_code_would_misread_is_refused() -> None:
    odd = np.frombuffer(bytes(161), dtype=np.uint8)[1:].view(np.float64)
    for other in (ONES[:-1], np.ones(40)[::2], odd):
        with pytest.raises(ValueError, match=r"dot: \d+ elements beside 20, or not in one piece"):
            native.run("dot", ONES, other, num_sums=1)


def test_sums_are_taken_in_fixed_lanes() -> None:
    """To the bit, whatever the processor: lane after lane, each in the order of its elements."""
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 1003))
    lanes = [0.0] * native.LANES
    for at, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        lanes[at % native.LANES] += one * other
    total = 0.0
    for lane in lanes:
        total += lane
    sums, _ = native.run("dot", left, right, num_sums=1)
    assert sums == [total]


@pytest.mark.parametrize(
    "told", ["NUMBA_DISABLE_JIT=1", "NUMBA_BOUNDSCHECK=1", "NUMBA_OPT=0", "NUMBA_DEBUGINFO=1"]
)
def test_what_numba_is_told_to_do_otherwise_is_an_error(told: str, tmp_path: Path) -> None:
    """Without a traceback, and nothing is kept."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
from cpt_residual.errors import LaunchError
from cpt_residual.weights import kernels, native
native._folders = lambda: iter([Path({str(tmp_path)!r})])
try:
    kernels.dot(np.ones(20), np.ones(20))
except LaunchError as error:
    print(error)
"""
    program = ["env", told, sys.executable, "-O", "-c", code]
    found = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    if found:  # else this version of numba makes the same of it
        assert "The kernel dot cannot be compiled to run without numba" in found
        assert told.partition("=")[0] in found
        assert not list(tmp_path.iterdir())
    else:
        assert told != "NUMBA_DISABLE_JIT=1"
