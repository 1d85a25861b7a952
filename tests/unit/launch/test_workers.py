"""Worker processes of one build: results, errors, deaths, and the end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError, CorpusError, WorkerError
from cpt_residual.launch.workers import Workers
from support.processes import wait_until_gone


@pytest.fixture(autouse=True)
def _find_this(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """The processes import `make`."""
    for folder in Path(__file__).parents[2:4]:
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def make(offset: int) -> Callable[[int], int]:
    """Work that fails here and there; importable by name."""

    def work(piece: int) -> int:
        if piece == 1:
            raise CorpusError("a bad piece", problems=["piece 1"])
        if piece == 2:
            raise ValueError("a defect")
        if piece == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if piece == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")
        return offset + piece if piece else os.getpid()

    return work


def workers(number: int = 1, offset: int = 0) -> Workers[int, int]:
    return Workers("tokenizer worker", make, (offset,), num_workers=number)


def test_results_belong_to_their_pieces_and_errors_harm_no_other() -> None:
    with workers(2, offset=100) as group, workers() as other:
        futures = [group.submit(piece) for piece in range(10, 30)]
        assert [group.result(future) for future in futures] == list(range(110, 130))
        with pytest.raises(CorpusError, match="a bad piece") as caught:
            group.result(group.submit(1))
        assert caught.value.problems == ("piece 1",)
        with pytest.raises(ValueError, match="a defect") as defect:
            group.result(group.submit(2))
        assert "in work" in str(defect.value.__cause__), "with the worker's traceback"
        with pytest.raises(ArtifactError) as refused:
            group.result(group.submit(4))
        assert refused.value.problems == ("some/file: No space left on device",)
        process = other.result(other.submit(0))
        os.kill(process, 0)
    wait_until_gone(process)


def test_a_killed_worker_is_named_with_its_signal() -> None:
    with workers(2) as group:
        group.result(group.submit(10))
        dying, other = group.submit(3), group.submit(10)
        with pytest.raises(WorkerError) as caught:
            group.result(dying)
        assert other.exception() is not None or other.result() == 10
    assert caught.value.what == "tokenizer worker was killed by SIGKILL"
    assert "lower launch.cores" in str(caught.value)


PARENT = f"""
import time
from {__name__} import workers
with workers() as group:
    print(group.result(group.submit(0)), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    process = int(parent.stdout.readline())
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()
    parent.wait()
    wait_until_gone(process)
    parent.stdout.close()
