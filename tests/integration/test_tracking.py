"""W&B as users have it: offline, online against a recording endpoint, resumed, and unreachable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.tracking.series import read_series, series_path
from cpt_residual.tracking.wandb_sink import RunIdentity
from support.wandb_endpoint import Fault, RecordedRun, WandbEndpoint
from support.wandb_offline import OfflineRun, read_offline_run

KEY = "0" * 40
SECRET = "a-secret-of-the-environment"
FINGERPRINT = "ab" * 32
SCRIPT = """
import json, logging, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from pydantic import BaseModel
from cpt_residual.config.schema import Tracking
from cpt_residual.core.stage import Node
from cpt_residual.errors import CptResidualError
from cpt_residual.tracking.outcome import upload_lines
from cpt_residual.tracking.sinks import check_tracking, open_sinks, track_report
from cpt_residual.tracking.wandb_sink import SummaryTable

class Recipe(BaseModel):
    learning_rate: float = 0.001

@dataclass(frozen=True)
class Stage:
    name = "cpt"
    version = 1
    node = "cpt:base_cpt"
    def recipe(self):
        return Recipe()
    def inputs(self):
        return {}

def hit(number):
    # as SLURM sends one to every process of a step
    for name in Path("/proc/self/task").glob("*/children"):
        for child in name.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "wandb-core":
                os.kill(int(child), number)
                time.sleep(0.5)
                return
    raise LookupError("no wandb-core below this process")

order = json.loads(sys.argv[1])
tracking = Tracking(wandb=order["mode"], project="p")
run_dir = Path(order["run_dir"])
try:
    print(check_tracking(tracking))
    if order.get("report_dir"):
        figures = sorted(Path(order["report_dir"]).glob("*.png"))
        table = SummaryTable(["variant", "value", "stderr"], [["base", 0.5, None]], figures)
        track_report(tracking, experiment="tiny", seed=0, fingerprint="ab" * 32,
                     run_dir=run_dir, summary=table)
        sys.exit(0)
    node = Node(Stage(), "ab" * 32, 0, {"start": "base"})
    with open_sinks(tracking, experiment="tiny", seed=0, node=node, run_dir=run_dir) as sinks:
        for step in order["steps"]:
            sinks.log({"loss": 1 / step}, tokens=2048 * step, step=step)
            if step == order.get("kill_at"):
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)
            if step == order.get("hit_at"):
                hit(order["signal"])
            if step == order.get("fail_at"):
                raise RuntimeError("the training failed")
        sinks.summarise({"final_loss": 0.25, "outcome": "kept"})
    print("wandb imported:", "wandb" in sys.modules)
except CptResidualError as error:
    print(error)
    sys.exit(error.exit_code)
finally:
    print(*upload_lines(run_dir), sep="\\n")
"""


def track(
    run_dir: Path,
    mode: str,
    *,
    url: str = "",
    key: str = "",
    variables: Mapping[str, str] | None = None,
    **order: object,
) -> subprocess.CompletedProcess[str]:
    """One process that tracks one stage, as a worker does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(run_dir.parent), "MY_PASSWORD": SECRET}
    environment |= {"WANDB_BASE_URL": url} if url else {}
    environment |= {"WANDB_API_KEY": key} if key else {}
    environment |= {"WANDB_INIT_TIMEOUT": "3", "WANDB_FINISH_TIMEOUT": "3"}
    environment |= variables or {}
    request = json.dumps({"mode": mode, "run_dir": str(run_dir), "steps": [1, 2, 3], **order})
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, request],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=run_dir.parent,
    )


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    return [read_offline_run(folder) for folder in folders]


def loss_rows(run: OfflineRun) -> list[tuple[int, int]]:
    return [(row["_step"], row["tokens"]) for row in run.history if "loss" in row]


def test_off_writes_json_lines_and_never_imports_wandb(tmp_path: Path) -> None:
    done = track(tmp_path / "run", "off")
    assert done.returncode == 0, done.stderr
    assert "wandb imported: False" in done.stdout
    rows = read_series(series_path(tmp_path / "run", "cpt:base_cpt"))
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_offline_run_has_identity_config_axis_and_summary(tmp_path: Path) -> None:
    done = track(tmp_path / "run", "offline")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet
    (run,) = offline_runs(tmp_path / "run")
    assert run.run_id == RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", FINGERPRINT).run_id
    assert (run.project, run.group, run.job_type) == ("p", "tiny-seed0", "cpt")
    assert run.name == "cpt:base_cpt seed 0"
    assert run.config["recipe"] == {"learning_rate": 0.001}
    assert run.config["fingerprint"] == FINGERPRINT
    assert loss_rows(run) == [(1, 2048), (2, 4096), (3, 6144)]
    assert run.x_axes["*"] == "tokens"
    assert run.summary["final_loss"] == 0.25
    assert run.exit_code == 0


def test_nothing_of_the_environment_or_the_machine_is_kept(tmp_path: Path) -> None:
    track(tmp_path / "run", "offline")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert not [path.name for path in files if SECRET.encode() in path.read_bytes()]
    names = {path.name for path in files}
    assert not names & {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}


def test_a_killed_and_a_resumed_run_have_no_doubled_or_shifted_steps_after_sync(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    killed = track(run_dir, "offline", steps=[1, 2, 3, 4], kill_at=3)
    assert killed.returncode == -9
    done = track(run_dir, "offline", steps=[1, 2, 3, 4, 5])  # a resumed training reports all steps
    rows = read_series(series_path(run_dir, "cpt:base_cpt"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    runs = sorted(offline_runs(run_dir), key=lambda run: len(loss_rows(run)))
    partial, whole = [1, 2, 3], [1, 2, 3, 4, 5]
    assert [[step for step, _ in loss_rows(run)] for run in runs] == [partial, whole]
    with WandbEndpoint() as endpoint:
        sync(upload_line(done), endpoint)
        assert [steps(run) for run in endpoint.runs.values()] == [whole]
        sync(f"wandb sync {run_dir}/wandb/offline-run-*", endpoint)  # all there is, by hand
        assert sorted(steps(run) for run in endpoint.runs.values()) == [partial, whole]


def test_a_failed_stage_ends_its_run_as_failed(tmp_path: Path) -> None:
    done = track(tmp_path / "run", "offline", fail_at=2)
    assert "the training failed" in done.stderr
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 1
    assert [step for step, _ in loss_rows(run)] == [1, 2]


def test_online_sends_rows_and_a_resume_sends_no_step_twice(tmp_path: Path) -> None:
    with WandbEndpoint() as endpoint:
        first = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, steps=[1, 2, 3])
        assert first.returncode == 0, first.stderr
        second = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, steps=[2, 3, 4, 5])
        assert second.returncode == 0, second.stderr
        (run_id,) = endpoint.runs
        run = endpoint.runs[run_id]
        sent = b"".join(endpoint.bodies)
    assert run_id == RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", FINGERPRINT).run_id
    rows = [row for row in run.history if "loss" in row]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["tokens"] for row in rows] == [2048 * step for step in range(1, 6)]
    assert run.settings["groupName"] == "tiny-seed0"
    assert run.config["recipe"] == {"learning_rate": 0.001}
    assert run.exit_code == 0
    assert SECRET.encode() not in sent
    assert KEY.encode() not in sent


def test_a_resume_after_kill_9_sends_the_rows_that_the_server_lacks(tmp_path: Path) -> None:
    with WandbEndpoint() as endpoint:
        killed = track(
            tmp_path / "run", "online", url=endpoint.url, key=KEY, steps=[1, 2, 3, 4], kill_at=3
        )
        assert killed.returncode == -9
        done = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, steps=[1, 2, 3, 4, 5])
        assert [steps(run) for run in endpoint.runs.values()] == [[1, 2, 3, 4, 5]]
    assert "not received" not in done.stdout


def test_online_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    done = track(tmp_path / "run", "online", url="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "no W&B API key was found" in done.stdout
    assert "wandb login" in done.stdout
    assert "tracking.wandb=offline" in done.stdout


@pytest.mark.parametrize("number", [15, pytest.param(9, marks=pytest.mark.slow)])
def test_a_dead_service_process_costs_nothing_but_the_upload(tmp_path: Path, number: int) -> None:
    with WandbEndpoint() as endpoint:
        done = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, hit_at=2, signal=number)
        assert_kept(done, tmp_path / "run", endpoint)


def test_rows_that_a_server_refuses_midway_arrive_by_the_line_at_the_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with WandbEndpoint() as endpoint:
        track(run_dir, "online", url=endpoint.url, key=KEY, steps=[1])
        assert [steps(run) for run in endpoint.runs.values()] == [[1]]
        endpoint.faults["/file_stream"] = 409
        done = track(run_dir, "online", url=endpoint.url, key=KEY)
        assert "409" in done.stdout
        endpoint.faults.clear()
        assert_kept(done, run_dir, endpoint)


def test_an_unreachable_server_costs_one_warning_and_nothing_else(tmp_path: Path) -> None:
    done = track(tmp_path / "run", "online", url="http://127.0.0.1:9", key=KEY)
    warnings = [line for line in done.stderr.splitlines() if "start:" in line]
    assert len(warnings) == 1
    (run,) = offline_runs(tmp_path / "run")
    assert [step for step, _ in loss_rows(run)] == [1, 2, 3]
    with WandbEndpoint() as endpoint:
        assert_kept(done, tmp_path / "run", endpoint)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/graphql", "/file_stream"])
@pytest.mark.parametrize("fault", [500, 409, 401, 403, "hang", "close"])
def test_every_way_of_a_server_to_fail(tmp_path: Path, path: str, fault: Fault) -> None:
    with WandbEndpoint({path: fault}) as endpoint:
        started = time.monotonic()
        done = track(tmp_path / "run", "online", url=endpoint.url, key=KEY)
        assert time.monotonic() - started < 60
        endpoint.faults.clear()
        assert_kept(done, tmp_path / "run", endpoint)


@pytest.mark.slow
def test_a_service_process_that_hangs_is_left_behind(tmp_path: Path) -> None:
    with WandbEndpoint() as endpoint:
        done = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, hit_at=2, signal=19)
        assert "no answer within" in done.stdout
        assert_kept(done, tmp_path / "run", endpoint)


@pytest.mark.slow
def test_a_deleted_run_goes_on_under_another_id_every_time_the_same(tmp_path: Path) -> None:
    identity = RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", FINGERPRINT)
    first, second = identity.run_id, identity.other_ids[0]
    with WandbEndpoint() as endpoint:
        endpoint.deleted.add(first)
        for rows in ([1, 2], [1, 2, 3, 4]):
            done = track(tmp_path / "run", "online", url=endpoint.url, key=KEY, steps=rows)
            assert done.returncode == 0, done.stderr
            assert "not received" not in done.stdout
            assert {name: steps(run) for name, run in endpoint.runs.items()} == {second: rows}


def assert_kept(
    done: subprocess.CompletedProcess[str], run_dir: Path, endpoint: WandbEndpoint
) -> None:
    """The stage ended well, its rows are in the JSON lines, and the line that the end has printed
    brings them to the server."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows = read_series(series_path(run_dir, "cpt:base_cpt"))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "W&B has not received 1 of 1 runs:" in done.stdout
    assert "cpt:base_cpt seed 0: " in done.stdout
    before = {name: steps(run) for name, run in endpoint.runs.items()}
    sync(upload_line(done), endpoint)
    (run,) = [run for name, run in endpoint.runs.items() if before.get(name) != steps(run)]
    assert steps(run) == [1, 2, 3]
    assert run.summary["final_loss"] == 0.25
    assert run.config["recipe"] == {"learning_rate": 0.001}
    assert run.exit_code == 0


def steps(run: RecordedRun) -> list[int]:
    assert all(row["tokens"] == 2048 * row["_step"] for row in run.history if "loss" in row)
    return [row["_step"] for row in run.history if "loss" in row]


def upload_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = [line for line in done.stdout.splitlines() if "wandb sync" in line]
    return line.removeprefix("upload: ")


def sync(line: str, endpoint: WandbEndpoint) -> None:
    """The command, as a user pastes it into a shell."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": endpoint.url, "WANDB_API_KEY": KEY}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        line, shell=True, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def report_dir(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "report"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "comparison.png")
    return folder


def test_the_summary_run_carries_table_and_figures(tmp_path: Path, report_dir: Path) -> None:
    run_dir = tmp_path / "run"
    done = track(run_dir, "offline", report_dir=str(report_dir))
    assert done.returncode == 0, done.stderr
    (run,) = offline_runs(run_dir)
    assert run.job_type == "summary"
    (row,) = [row for row in run.history if "results" in row or "results/_type" in row]
    assert any(key.startswith("figures/comparison") for key in row)
    (table,) = run_dir.rglob("*.table.json")
    document = json.loads(table.read_text())
    assert document["columns"] == ["variant", "value", "stderr"]
    assert document["data"] == [["base", 0.5, None]]


def test_the_summary_run_is_nothing_when_wandb_is_off(tmp_path: Path, report_dir: Path) -> None:
    run_dir = tmp_path / "run"
    assert track(run_dir, "off", report_dir=str(report_dir)).returncode == 0
    assert not run_dir.exists()
