"""A crew: results, errors, deaths, and the end."""

from __future__ import annotations

import errno
import os
import signal
import threading
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


@pytest.mark.parametrize(("num_workers", "threads"), [(2, 1), (3, 2), (2, 4)])
def test_results_come_in_the_order_of_the_pieces(num_workers: int, threads: int) -> None:
    crew: Crew[int, int] = Crew(make, num_workers=num_workers, threads_per_process=threads)
    with crew:
        crew.begin(100)
        futures = [crew.submit(piece) for piece in range(10, 30)]
        assert [future.result() for future in futures] == list(range(110, 130))


def test_errors_of_the_users_come_as_they_are_and_others_as_defects() -> None:
    crew: Crew[int, int] = Crew(make, num_workers=1)
    with crew:
        crew.begin(0)
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


def make_meeting(num_threads: int) -> Callable[[int], tuple[int, int]]:
    """Work that goes on only when as many threads are at it; tells its process and thread."""
    barrier = threading.Barrier(num_threads, timeout=20)

    def work(_: int) -> tuple[int, int]:
        barrier.wait()
        return os.getpid(), threading.get_ident()

    return work


def test_threads_of_a_process_share_what_is_made_and_work_at_once() -> None:
    crew: Crew[int, tuple[int, int]] = Crew(make_meeting, num_workers=2, threads_per_process=2)
    with crew:
        crew.begin(2)
        one, other = [future.result() for future in [crew.submit(0) for _ in range(2)]]
    assert one[0] == other[0] != os.getpid()
    assert one[1] != other[1]


def test_all_threads_of_a_process_that_dies_are_told() -> None:
    crew: Crew[int, int] = Crew(make, num_workers=2, threads_per_process=2)
    with crew:
        crew.begin(0)
        crew.submit(10).result()
        crew.submit(3).exception()
        for future in [crew.submit(10) for _ in range(2)]:
            with pytest.raises(WorkerError, match="was killed by SIGKILL"):
                future.result()


def test_a_process_that_dies_is_told() -> None:
    crew: Crew[int, int] = Crew(make, num_workers=1)
    with crew:
        crew.begin(0)
        with pytest.raises(WorkerError, match="was killed by SIGKILL"):
            crew.submit(3).result()


def test_processes_end_with_the_crew() -> None:
    crew: Crew[int, int] = Crew(make, num_workers=1)
    with crew:
        crew.begin(0)
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


def test_processes_end_with_a_crew_that_never_began() -> None:
    crew: Crew[int, int] = Crew(make, num_workers=3)
    with crew:
        processes = [member._process for member in crew._members]
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() == -signal.SIGKILL for process in processes)
