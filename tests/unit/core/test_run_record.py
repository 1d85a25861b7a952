from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from cpt_residual.core import measure, run_record
from cpt_residual.core.disk import check_free_space, format_bytes, free_bytes
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.run_record import code_version, git_state, library_versions, new_run_dir
from cpt_residual.errors import DiskSpaceError


def test_run_folders_are_named_by_time_experiment_and_plan(tmp_path: Path) -> None:
    folders = [new_run_dir(tmp_path / "runs", "tiny", "0123456789abcdef") for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.is_dir()
        assert re.fullmatch(r"\d{8}T\d{6}Z-tiny-01234567(-\d+)?", folder.name)


def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    write_json_atomic(path, {"b": 1, "a": [1.5, None]})
    assert list(json.loads(path.read_text())) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"a": float("nan")})

    def fail(handle: int) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text())["b"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_state_tells_commit_and_cleanliness(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    _git(tmp_path, "init")
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "file").write_text("x")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"] or "")
    assert clean["dirty"] is False
    (tmp_path / "file").write_text("y")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_git_state_without_git_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path / "absent") == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_versions_are_known_without_importing_the_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert library_versions()["pydantic"].count(".") >= 2
    monkeypatch.setattr(run_record, "LIBRARIES", ("pydantic", "no-such-library-at-all"))
    library_versions.cache_clear()
    assert set(library_versions()) == {"pydantic"}
    library_versions.cache_clear()
    assert re.fullmatch(r"[^+]+\+[0-9a-f]{12}", code_version())


def test_cores_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert measure.usable_cores() == (os.cpu_count() or 1)


def test_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
    check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DiskSpaceError, match=r"needed: 1024.0 TiB"):
        check_free_space(tmp_path, 1 << 50)


def test_sizes_for_people() -> None:
    sizes = [0, 1023, 1024, 1536 * 1024, 3 * 1024**3, 5 * 1024**4]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "3.0 GiB",
        "5.0 TiB",
    ]
