"""What is read from and given to the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import cpt_residual
from cpt_residual.errors import LaunchError
from cpt_residual.launch import environment
from cpt_residual.launch.environment import (
    child_environment,
    preserved_environment,
    rank_environment,
    set_maths_defaults,
    visible_gpus,
)

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def test_without_torchrun_this_is_the_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    found = rank_environment()
    assert (found.rank, found.local_rank, found.world_size) == (0, 0, 1)
    assert found.is_first


def test_ranks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("5", "1", "8"), strict=True):
        monkeypatch.setenv(name, value)
    found = rank_environment()
    assert (found.rank, found.local_rank, found.world_size) == (5, 1, 8)
    assert not found.is_first


def test_half_a_rank_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "x")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(LaunchError) as caught:
        rank_environment()
    assert caught.value.problems == ("LOCAL_RANK=x", "WORLD_SIZE=<not set>")


def test_children_find_ninja_and_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    child = child_environment(threads=3)
    assert child["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    root = str(Path(cpt_residual.__file__).parents[1])
    assert child["PYTHONPATH"].split(os.pathsep) == [root, "/elsewhere"]
    assert child["OMP_NUM_THREADS"] == "3"


def test_changes_are_undone() -> None:
    before = dict(os.environ)

    def change() -> None:
        with preserved_environment():
            os.environ["CPT_RESIDUAL_TEST"] = "1"
            del os.environ["PATH"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert dict(os.environ) == before


def test_maths_libraries_are_told_what_the_user_has_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_CBWR"):
        monkeypatch.delenv(name, raising=False)
    assert child_environment(threads=1)["MKL_CBWR"] == "AUTO"
    assert child_environment(threads=1)["GOMP_SPINCOUNT"] == "10000"
    set_maths_defaults()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    set_maths_defaults()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_maths_defaults()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert child_environment(threads=1)["MKL_CBWR"] == "COMPATIBLE"


def test_torch_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_ASK_TORCH", "print('a warning'); print(3)")
    assert visible_gpus() == 3
    monkeypatch.setattr(environment, "_ASK_TORCH", "import torch_is_not_here")
    assert visible_gpus() is None
