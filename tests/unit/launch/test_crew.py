"""A crew: results, errors, deaths, and the end."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError, CorpusError, WorkerError
from cpt_residual.launch.crew import Crew


@pytest.fixture(autouse=True)
def _find_this(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """The processes import `make`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


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


def test_results_come_in_the_order_of_the_pieces() -> None:
    crew: Crew[int, int] = Crew(make, 100, num_workers=2)
    with crew:
        futures = [crew.submit(piece) for piece in range(10, 30)]
        assert [future.result() for future in futures] == list(range(110, 130))


def test_errors_of_the_users_come_as_they_are_and_others_as_defects() -> None:
    crew: Crew[int, int] = Crew(make, 0, num_workers=1)
    with crew:
        with pytest.raises(CorpusError, match="a bad piece") as caught:
            crew.submit(1).result()
        assert caught.value.problems == ("piece 1",)
        with pytest.raises(WorkerError, match="unexpected") as defect:
            crew.submit(2).result()
        assert defect.value.problems[-1] == "ValueError: a defect"
        with pytest.raises(ArtifactError) as refused:
            crew.submit(4).result()
        assert refused.value.problems == ("some/file: No space left on device",)
        assert crew.submit(10).result() == 10, "a failed piece harms no other"


def test_a_process_that_dies_is_told() -> None:
    crew: Crew[int, int] = Crew(make, 0, num_workers=1)
    with crew, pytest.raises(WorkerError, match="was killed by SIGKILL"):
        crew.submit(3).result()


def test_processes_end_with_the_crew() -> None:
    crew: Crew[int, int] = Crew(make, 0, num_workers=1)
    with crew:
        process = crew.submit(0).result()
        os.kill(process, 0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the process lives on")
