"""JSON lines: nothing that was logged is lost, and no step comes twice."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.tracking.series import SeriesSink, read_series, series_path
from cpt_residual.tracking.wandb_sink import RunIdentity


def steps(path: Path) -> list[float]:
    return [row["step"] for row in read_series(path)]


def log(path: Path, wanted: list[int], loss: float = 1.0) -> None:
    with closing(SeriesSink(path)) as sink:
        for step in wanted:
            sink.log({"loss": loss}, tokens=10 * step, step=step)


def test_rows_carry_step_tokens_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with closing(SeriesSink(path)) as sink:
        sink.log({"loss": 2.5, "grad_norm": 0.5}, tokens=2048, step=1)
    assert read_series(path) == [{"step": 1, "tokens": 2048, "loss": 2.5, "grad_norm": 0.5}]


def test_every_row_is_on_disk_before_the_sink_is_closed(tmp_path: Path) -> None:
    sink = SeriesSink(tmp_path / "a.jsonl")
    sink.log({"loss": 1.0}, tokens=1, step=1)
    assert steps(sink.path) == [1]
    sink.close()


def test_a_resume_from_an_older_checkpoint_cuts_what_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log(path, [1, 2, 3, 4, 5], loss=1.0)
    log(path, [4, 5, 6], loss=2.0)
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in read_series(path)] == [1, 1, 1, 2, 2, 2]


def test_rows_of_one_step_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with closing(SeriesSink(path)) as sink:
        sink.log({"loss": 1.0}, tokens=5, step=1)
        sink.log({"grad_norm": 3.0}, tokens=5, step=1)
    assert read_series(path) == [{"step": 1, "tokens": 5, "loss": 1.0, "grad_norm": 3.0}]


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log(path, [1, 2])
    with path.open("ab") as stream:
        stream.write(b'{"step": 3, "tok')
    assert steps(path) == [1, 2]
    log(path, [3])
    assert steps(path) == [1, 2, 3]


@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=4))
def test_steps_always_increase(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("series") / "a.jsonl"
    for session in sessions:
        log(path, session)
        found = steps(path)
        assert found == sorted(set(found))
        assert found[-1] == session[-1]
    for line in path.read_text().splitlines():
        json.loads(line)


def test_node_names_make_plain_file_names(tmp_path: Path) -> None:
    assert series_path(tmp_path, "cpt:base_cpt").name == "cpt.base_cpt.jsonl"


def test_run_ids_depend_on_everything_that_makes_another_run() -> None:
    one = RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", "ab" * 32)
    others = [
        RunIdentity("tiny2", 0, "cpt", "cpt:base_cpt", "ab" * 32),
        RunIdentity("tiny", 1, "cpt", "cpt:base_cpt", "ab" * 32),
        RunIdentity("tiny", 0, "cpt", "cpt:other", "ab" * 32),
        RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", "cd" * 32),
    ]
    assert len({one.run_id, *(other.run_id for other in others)}) == 5
    assert one.run_id == RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", "ab" * 32).run_id
    assert one.group == "tiny-seed0"
