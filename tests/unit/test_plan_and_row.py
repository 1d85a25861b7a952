"""`plan`, `row` and frozen plans in this process: what they print, and bad files."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpt_residual import plan as plan_module
from cpt_residual.config.schema import Launch
from cpt_residual.core.store import Store
from cpt_residual.launch import machine
from cpt_residual.plan import main as plan
from cpt_residual.row import main as row
from cpt_residual.stages import closing, evaluate, pack, registry, train
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.overview import Overview

CUT = ["+experiment=smoke", "evaluation.variants=[base]", "evaluation.suites=[heldout]"]
Said = Callable[[], str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def frozen(place: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The content of a plan that was written to `plan.json`."""
    assert plan([*CUT, "--out", "plan.json"]) == 0
    capsys.readouterr()
    return json.loads((place / "plan.json").read_text())


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was said on stderr; never a traceback, another library's words or a link."""

    def read() -> str:
        text = capsys.readouterr().err
        assert not any(word in text for word in ("Traceback", "pydantic", "http", "[type="))
        return text

    return read


def test_a_row_that_would_be_tracked_refuses_a_variable_of_wandb_first(
    place: Path, frozen: dict[str, Any], errors: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    (index,) = [n for n, row in enumerate(frozen["rows"]) if row["node"] == "pretrain:base"]
    assert row(["plan.json", str(index)]) == 2
    assert "  WANDB_RUN_ID=mine: every stage is a run with its own\n" in errors()


def test_a_row_says_where_its_run_goes_and_a_ready_one_asks_nothing_of_wandb(
    frozen: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = SimpleNamespace(skipped=True, reason="ready")
    monkeypatch.setattr(Builder, "build", lambda *_: skipped)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (index,) = [n for n, row in enumerate(frozen["rows"]) if row["node"] == "pretrain:base"]
    assert row(["plan.json", str(index)]) == 0
    said = capsys.readouterr()
    assert "W&B is off: WANDB_MODE=disabled" in said.out + said.err
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(Store, "status", lambda *_: SimpleNamespace(state="ready"))
    assert row(["plan.json", str(index)]) == 0


def test_a_row_with_other_libraries_replaces_the_record_of_the_environment(
    place: Path, frozen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "build", lambda *_: SimpleNamespace(skipped=True, reason="ready"))
    for torch in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr(closing, "library_versions", lambda torch=torch: {"torch": torch})
        assert row(["plan.json", "0"]) == 0
        (record,) = place.glob("outputs/runs/*/environment.json")
        assert json.loads(record.read_text())["libraries"] == {"torch": torch}


# --- plans that cannot be used -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"\x80\x04\x95", "not UTF-8: byte 0x80 at byte offset 0"),
        (b'{"rows": [', "line 1, column 11: not JSON: "),
        (b"[]", "(top level): []: must be a mapping"),
        (b"{}", "config: required, no default"),
    ],
)
def test_a_file_that_is_no_plan(place: Path, errors: Said, content: bytes, problem: str) -> None:
    (place / "plan.json").write_bytes(content)
    assert row(["plan.json", "0"]) == 2
    text = errors()
    assert "ConfigError: plan.json is not a frozen plan of this version\n" in text
    assert problem in text
    assert "Write it again: python -m cpt_residual.plan" in text


def test_findings_about_a_plan_are_ours(place: Path, frozen: dict[str, Any], errors: Said) -> None:
    frozen["schema"], frozen["config"]["trainig"] = 0, 1
    frozen["config"]["models"]["base"]["strat"] = "x"
    del frozen["config"]["seed"]
    (place / "plan.json").write_text(json.dumps(frozen))
    assert row(["plan.json", "0"]) == 2
    text = errors()
    assert "  schema: 0: must be 2\n" in text
    assert "  config.seed: required, no default\n" in text
    assert "  config.trainig: 1: unknown key." in text
    assert "  config.models.base.strat: 'x': unknown key. Did you mean 'start'?\n" in text


def test_a_folder_is_no_plan(place: Path, errors: Said) -> None:
    assert row([".", "0"]) == 2
    assert f"ConfigError: {Path()} cannot be read: Is a directory\n" in errors()


def test_an_edited_plan_may_be_what_changed(
    place: Path, frozen: dict[str, Any], errors: Said
) -> None:
    frozen["config"]["seed"] = 5
    (place / "plan.json").write_text(json.dumps(frozen))
    assert row(["plan.json", "0"]) == 2
    assert "The code, a local source or the plan file itself was changed since." in errors()
    frozen["config"]["roles"]["base"] = "bsae"
    (place / "plan.json").write_text(json.dumps(frozen))
    assert row(["plan.json", "0"]) == 2
    assert "plan.json: experiment smoke contradicts itself" in errors()


def test_a_root_of_a_plan_that_cannot_be_written(
    place: Path, frozen: dict[str, Any], errors: Said
) -> None:
    (place / "file").write_text("")
    frozen["config"]["paths"]["root"] = str(place / "file")
    (place / "plan.json").write_text(json.dumps(frozen))
    assert row(["plan.json", "0"]) == 2
    assert "nothing can be written below the plan's paths.root" in errors()


def test_a_written_plan_tells_the_numbers_of_its_rows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan([*CUT, "--out", "plan.json"]) == 0
    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = json.loads((place / "plan.json").read_text())["rows"]
    assert len(rows) > 2
    assert all([str(each["index"]), each["node"]] in told for each in rows)


def test_sigterm_ends_a_row_as_ctrl_c_does(
    frozen: dict[str, Any], errors: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(Builder, "build", wait)
    assert row(["plan.json", "0"]) == 143
    assert errors() == "terminated: build the same row again to resume\n"


# --- where a plan is written ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("no/such/plan.json", "no such folder: {place}/no"),
        ("file/plan.json", "{place}/file is a file"),
        ("folder", "folder is a folder"),
    ],
)
def test_a_place_that_cannot_hold_a_plan_is_refused_first(
    place: Path, capsys: pytest.CaptureFixture[str], out: str, problem: str
) -> None:
    (place / "file").write_text("")
    (place / "folder").mkdir()
    assert plan([*CUT, "--out", out]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the plan cannot be written to {out}\n  {problem.format(place=place)}\n" in said.err
    assert sorted(path.name for path in place.iterdir()) == ["file", "folder"]


def test_a_plan_that_fails_to_be_written_says_so(
    place: Path, errors: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("cpt_residual.stages.frozen.write_json_atomic", full)
    assert plan([*CUT, "--out", "new/plan.json"]) == 2
    assert "cannot be written to new/plan.json\n  No space left on device\n" in errors()


# --- what a plan prints --------------------------------------------------------------------------
def test_names_and_reasons_are_printed_as_they_are(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Damaged(Overview):
        @classmethod
        def of(cls, graph: Any, store: Store) -> Overview:
            stages = [
                replace(
                    stage,
                    status=replace(
                        stage.status, state="corrupt", reason=f"{stage.name}: x [type=missing] :ok:"
                    ),
                )
                for stage in Overview.of(graph, store).stages
            ]
            return Overview(tuple(stages))

    monkeypatch.setattr(plan_module, "Overview", Damaged)
    assert plan(["+experiment=smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "residual:family: x [type=missing] :ok:" in lines
    assert "evaluate:base: x [type=missing] :ok:" in lines


@pytest.mark.parametrize(("cores", "note"), [("1000", " (launch.cores=1000, but"), ("null", " (")])
def test_the_estimate_is_of_the_cores_there_are(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cores: str,
    note: str,
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert plan([*CUT, f"launch.cores={cores}"]) == 0
    assert f"on 2 cores{note}" in capsys.readouterr().out


def test_rows_ask_for_no_more_and_no_less_than_elsewhere(
    place: Path, errors: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uses_gpu(launch: Launch) -> bool:
        return launch.device == "cuda"

    for module in (evaluate, train, machine):
        monkeypatch.setattr(module, "uses_gpu", uses_gpu)
    monkeypatch.setattr(registry, "usable_cores", lambda: 96)
    monkeypatch.setattr(pack, "_PARALLEL_TOKENS", 1)
    for device, cores, warns in (("auto", "null", True), ("cuda", "12", False)):
        chosen = [f"launch.device={device}", f"launch.cores={cores}"]
        assert plan([*CUT, *chosen, "--out", "plan.json"]) == 0
        assert ("no GPU is seen here" in errors()) == warns
        rows = json.loads((place / "plan.json").read_text())["rows"]
        packs = {row["resources"]["cores"] for row in rows if row["stage"] == "pack"}
        assert packs == {8 if cores == "null" else 12}


def test_an_empty_root_is_refused(place: Path, errors: Said) -> None:
    assert plan([*CUT, "paths.root="]) == 2
    assert "paths.root: '': names no folder; write paths.root=." in errors()
