"""Kernels run compiled code, kept outside the package, on memory that has been checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cpt_residual
from cpt_residual.weights.maths import kernel_bodies, kernels

ONES = np.ones(20)
DOT = """
import numpy as np
from cpt_residual.errors import LaunchError
from cpt_residual.weights.maths import kernels
try:
    print(kernels.dot(np.ones(20), np.ones(20)))
except LaunchError as error:
    print(error)
"""


def run_dot(**variables: str) -> str:
    program = [sys.executable, "-c", DOT]
    environment = {**os.environ, **variables}
    return subprocess.run(
        program, env=environment, check=True, capture_output=True, text=True
    ).stdout


def package_files() -> set[Path]:
    return set(Path(cpt_residual.__file__).parent.rglob("*.nb[ci]"))


def test_what_is_compiled_is_kept_for_the_user_and_not_in_the_package(tmp_path: Path) -> None:
    before = package_files()
    assert run_dot(HOME=str(tmp_path), NUMBA_CACHE_DIR="") == "20.0\n"
    files = sorted(path.name for path in (tmp_path / ".cache/cpt_residual/numba").rglob("*.nb?"))
    assert [name.rpartition(".")[2] for name in files] == ["nbc", "nbi"]
    assert run_dot(HOME=str(tmp_path), NUMBA_CACHE_DIR="") == "20.0\n"
    again = sorted(path.name for path in (tmp_path / ".cache/cpt_residual/numba").rglob("*.nb?"))
    assert again == files, "nothing was compiled twice"
    assert package_files() == before


def test_a_user_without_a_home_compiles_for_the_process(tmp_path: Path) -> None:
    before = package_files()
    assert run_dot(HOME=str(tmp_path / "none"), NUMBA_CACHE_DIR="") == "20.0\n"
    assert package_files() == before


def test_numba_that_may_not_compile_is_an_error(tmp_path: Path) -> None:
    assert "NUMBA_DISABLE_JIT" in run_dot(NUMBA_DISABLE_JIT="1", HOME=str(tmp_path))


def test_memory_that_compiled_code_would_misread_is_refused() -> None:
    odd = np.frombuffer(bytes(161), dtype=np.uint8)[1:].view(np.float64)
    for other in (ONES[:-1], np.ones(40)[::2], odd):
        with pytest.raises(ValueError, match=r"dot: \d+ elements beside 20, or not in one piece"):
            kernels.run("dot", ONES, other, num_sums=1)


def test_sums_are_taken_in_fixed_lanes() -> None:
    """To the bit, whatever the processor: lane after lane, each in the order of its elements."""
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 1003))
    lanes = [0.0] * kernel_bodies.LANES
    for at, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        lanes[at % kernel_bodies.LANES] += one * other
    total = 0.0
    for lane in lanes:
        total += lane
    assert kernels.dot(left, right) == total
