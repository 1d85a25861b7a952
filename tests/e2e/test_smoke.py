"""The whole experiment graph in a process of its own, at a twentieth of the tiny budgets."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.commands import call, command, environment, run_code

ROWS = """
import sys
from cpt_residual.row import main
plan, *indices = sys.argv[1:]
sys.exit(max(main([plan, index]) for index in indices))
"""
VARIANTS = {"base", "instruct", "base_cpt", "instruct_cpt", "base_cpt_residual"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which `+experiment=smoke` ran once, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    done = call("run", "+experiment=smoke", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def _report(output: str) -> Path:
    last = output.strip().splitlines()[-1]
    assert last.startswith("report: ")
    return Path(last.removeprefix("report: "))


def _contents(store: Path) -> dict[str, str]:
    """content_hash of every artifact by stage and fingerprint."""
    manifests = sorted(store.glob("*/*/manifest.json"))
    return {
        str(path.parent.relative_to(store)): json.loads(path.read_text())["content_hash"]
        for path in manifests
    }


def test_the_report_holds_table_figures_and_results(finished: tuple[Path, str]) -> None:
    _, output = finished
    report = _report(output)
    text = report.read_text(encoding="utf-8")
    with (report.parent / "results.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert set(rows[0]) >= {"variant", "task", "metric", "value", "stderr", "n"}
    assert {row["variant"] for row in rows} >= VARIANTS
    figures = sorted(path.name for path in (report.parent / "figures").glob("*.png"))
    assert "comparison.png" in figures
    for figure in figures:
        assert figure in text
        assert f"figure: {report.parent / 'figures' / figure}" in output
    assert "base_cpt_residual" in output


def test_a_second_run_skips_everything_and_says_why(finished: tuple[Path, str]) -> None:
    folder, first = finished
    started = time.monotonic()
    done = call("run", "+experiment=smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    lines = done.stdout.splitlines()
    skipped = [line for line in lines if line.startswith("skip")]
    assert len(skipped) == 40
    assert all("same recipe and inputs" in line for line in skipped)
    assert not any(line.startswith(("start", "done")) for line in lines)
    before, after = _report(first), _report(done.stdout)
    assert before != after
    assert before.read_bytes() == after.read_bytes()


def test_the_plan_sees_what_is_ready(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = call("plan", "+experiment=smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "40 ready and reused, 0 to build" in done.stdout
    assert "└─ residual:family" in done.stdout


@pytest.mark.slow
def test_rows_in_level_order_give_the_same_bytes(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """What the SLURM arrays run, by hand: the first level each row in a process of its own, of
    the other levels all rows in one, since every process imports torch again."""
    cut = ["+experiment=smoke", "evaluation.variants=[instruct,base_cpt_residual]"]
    cut += ["roles.instruct_cpt=null", "tracking=off"]
    done = call("plan", *cut, "--out", "plan.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    early = call("row", "plan.json", str(plan["levels"][-1][0]), cwd=tmp_path)
    assert early.returncode == 2
    assert "not built yet" in early.stderr
    first, *others = plan["levels"]
    for index in first:
        done = call("row", "plan.json", str(index), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for level in others:
        done = run_code(ROWS, "plan.json", *map(str, level), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    assert (folder / "environment.json").is_file()
    assert not (folder / "verified").exists()
    assert {"report.md", "times.json"} <= {path.name for path in (folder / "report").iterdir()}
    assert "base_cpt_residual" in done.stdout, "the last row shows the comparison"
    assert done.stdout.rstrip().endswith(f"report: {folder / 'report/report.md'}")
    again = call("row", "plan.json", "0", cwd=tmp_path)
    assert "skip" in again.stdout
    garbage = call("cli", "gc", "--root", "outputs", cwd=tmp_path)
    assert "0 items" in garbage.stdout, "what rows built is recorded"
    rows, run = _contents(tmp_path / "outputs/store"), _contents(finished[0] / "outputs/store")
    shared = {key for key in rows if not key.startswith(("report/", "geometry/"))}
    assert len(shared) == len(rows) - 2
    assert {key: rows[key] for key in shared} == {key: run[key] for key in shared}


def test_an_interrupted_run_says_so_and_resumes(tmp_path: Path) -> None:
    arguments = [
        "+experiment=smoke",
        "tracking=off",
        "evaluation.variants=[base,instruct,base_cpt]",
    ]
    arguments += ["roles.merged=base_cpt", "roles.instruct_cpt=null"]
    arguments += ["evaluation.suites=[heldout]"]
    process = subprocess.Popen(
        command("run", *arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("start  pretrain:base"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    done = call("run", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.startswith("skip   world") for line in done.stdout.splitlines())
    assert done.stdout.strip().splitlines()[-1].startswith("report: ")
