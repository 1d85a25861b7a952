"""Only checkpoints with their marker count."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.errors import LaunchError, WorkerError
from cpt_residual.train.checkpoint import discard_older, last_complete, mark_complete
from cpt_residual.train.job import Layout

LAYOUT = Layout(zero_stage=2, num_processes=2, precision="fp32", num_steps=9, rows_per_step=4)


def write(folder: Path, step: int, *, complete: bool = True, layout: Layout = LAYOUT) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / f"global_step{step}").mkdir(parents=True)
    (path / f"global_step{step}" / "rank_0.pt").write_bytes(b"state")
    (path / "trainer_state.json").write_text("{}")
    if complete:
        mark_complete(path, layout)
    return path


def test_nothing_there(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "absent", LAYOUT) is None


def test_the_newest_complete_one_counts_and_debris_is_deleted(tmp_path: Path) -> None:
    write(tmp_path, 2)
    wanted = write(tmp_path, 10)
    debris = write(tmp_path, 11, complete=False)
    found = last_complete(tmp_path, LAYOUT)
    assert found is not None
    assert (found.path, found.step) == (wanted, 10)
    assert not debris.exists()


def test_older_ones_are_discarded(tmp_path: Path) -> None:
    write(tmp_path, 2)
    newest = write(tmp_path, 4)
    discard_older(tmp_path, newest)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_another_layout_is_refused_with_both_values(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    other = LAYOUT.model_copy(update={"num_processes": 4})
    with pytest.raises(LaunchError) as caught:
        last_complete(tmp_path, other)
    text = str(caught.value)
    assert "num_processes: checkpoint 2, now 4" in text
    assert f"delete {path}" in text
    assert path.exists()


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    (path / "trainer_state.json").write_text("{} ")
    with pytest.raises(WorkerError, match=r"trainer_state\.json: expected 2 bytes, found 3"):
        last_complete(tmp_path, LAYOUT)
