"""The SLURM scripts against stand-ins for `sbatch`, `srun` and `scontrol` (bash, no SLURM)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARRAY = ROOT / "slurm" / "array.sbatch"
SUBMIT = ROOT / "slurm" / "submit.py"
GOLDEN = ROOT / "tests" / "golden" / "slurm"


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def environment(folder: Path, **extra: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **extra}


def array_task(
    folder: Path, python: str = "/venv/bin/python", **extra: str
) -> subprocess.Popen[bytes]:
    known = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "80"}
    return subprocess.Popen(
        ["bash", str(ARRAY), "/plans/plan.json", python],
        env=environment(folder, **known, **extra),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def plan(folder: Path) -> Path:
    stages = ["world", "pack", "pack", "cpt", "apply", "evaluate", "evaluate", "report"]
    levels = [[0], [1, 2], [3], [4, 5, 6], [7]]
    gpus = {"cpt": 8, "evaluate": 1}
    rows = [
        {
            "index": i,
            "level": level,
            "node": f"n{i}",
            "stage": stages[i],
            "fingerprint": "f",
            "resources": {
                "nodes": 2 if stages[i] == "cpt" else 1,
                "gpus_per_node": gpus.get(stages[i], 0),
                "cores": 64 if stages[i] == "cpt" else 1,
                "memory_bytes": 2**30 * i,
                "gpu_memory_bytes": 0,
            },
        }
        for level, indices in enumerate(levels)
        for i in indices
    ]
    path = folder / "plan.json"
    path.write_text(json.dumps({"schema": 2, "levels": levels, "rows": rows}))
    return path


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SUBMIT), *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


# --- the array script ----------------------------------------------------------------------------
def test_the_script_is_golden_and_is_bash() -> None:
    assert ARRAY.read_text() == (GOLDEN / "array.sbatch").read_text()
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(ARRAY)], check=False).returncode == 0


def test_a_row_is_run_from_the_frozen_plan(bin_dir: Path) -> None:
    stand_in(bin_dir, "srun", "exit 0")
    task = array_task(bin_dir)
    assert task.wait(20) == 0
    (call,) = calls(bin_dir)
    assert call.startswith("srun ")
    assert call.endswith("/venv/bin/python -m cpt_residual.row /plans/plan.json 3")


def test_a_row_of_several_nodes_starts_its_own_ranks(bin_dir: Path) -> None:
    stand_in(bin_dir, "srun", "exit 0")
    stand_in(bin_dir, "python", "exit 7")
    task = array_task(bin_dir, str(bin_dir / "python"), SLURM_JOB_NUM_NODES="2")
    assert task.wait(20) == 7
    assert calls(bin_dir) == ["python -m cpt_residual.row /plans/plan.json 3"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_ends_the_task_with_its_exit_code(bin_dir: Path, code: int) -> None:
    stand_in(bin_dir, "srun", f"exit {code}")
    stand_in(bin_dir, "scontrol", "exit 0")
    assert array_task(bin_dir).wait(20) == code
    assert not [call for call in calls(bin_dir) if call.startswith("scontrol")]


def test_an_interrupted_stage_requeues_its_own_array_task(bin_dir: Path) -> None:
    stand_in(bin_dir, "srun", "exit 75")
    stand_in(bin_dir, "scontrol", "exit 0")
    assert array_task(bin_dir).wait(20) == 75
    assert calls(bin_dir)[-1] == "scontrol requeue 77_3"


def test_usr1_is_passed_on_and_waited_for(bin_dir: Path) -> None:
    saved = bin_dir / "saved"
    body = f"trap 'sleep 0.3; touch {saved}; exit 75' USR1\ntouch {bin_dir}/up\n"
    stand_in(bin_dir, "srun", body + "while true; do sleep 0.05; done")
    stand_in(bin_dir, "scontrol", "kill -TERM $PPID; exit 0")  # as the real requeue does
    task = array_task(bin_dir)
    deadline = time.monotonic() + 20
    while not (bin_dir / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    task.send_signal(signal.SIGUSR1)
    assert task.wait(20) == 75
    assert saved.exists()
    assert calls(bin_dir)[-1] == "scontrol requeue 77_3"


def test_a_row_that_finishes_after_usr1_is_done(bin_dir: Path) -> None:
    body = f"trap 'exit 0' USR1\ntouch {bin_dir}/up\nwhile true; do sleep 0.05; done"
    stand_in(bin_dir, "srun", body)
    task = array_task(bin_dir)
    deadline = time.monotonic() + 20
    while not (bin_dir / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    task.send_signal(signal.SIGUSR1)
    assert task.wait(20) == 0


def test_restarts_are_bounded(bin_dir: Path) -> None:
    stand_in(bin_dir, "srun", "exit 75")
    stand_in(bin_dir, "scontrol", "exit 0")
    task = array_task(bin_dir, SLURM_RESTART_COUNT="5", MAX_RESTARTS="5")
    assert task.wait(20) == 1
    assert len(calls(bin_dir)) == 1


def test_a_requeue_that_fails_is_a_failure(bin_dir: Path) -> None:
    stand_in(bin_dir, "srun", "exit 75")
    stand_in(bin_dir, "scontrol", "exit 1")
    assert array_task(bin_dir).wait(20) == 1


# --- the submit script ---------------------------------------------------------------------------
def test_rows_of_a_level_with_equal_resources_are_an_array(bin_dir: Path, tmp_path: Path) -> None:
    count = f"n=$(wc -l < {bin_dir}/calls); echo $((100 + n))"
    stand_in(bin_dir, "sbatch", count)
    path = plan(tmp_path)
    done = submit(bin_dir, str(path), "--gpu-partition=big", "--", "--account=me", "--mem=9G")
    assert done.returncode == 0, done.stderr
    made = [shlex.split(call) for call in calls(bin_dir)]
    assert [call[2] for call in made] == [
        f"--array={span}" for span in ("0", "1-2", "3", "4", "5-6", "7")
    ]
    after = [[arg for arg in call if arg.startswith("--dependency")] for call in made]
    waits = ["101", "102", "103", "103", "104:105"]
    assert after == [[], *[[f"--dependency=afterok:{jobs}"] for jobs in waits]]
    assert all("--kill-on-invalid-dep=yes" in call for call in made[1:])
    asked = [call[call.index("--ntasks-per-node=1") - 1 :][:-3] for call in made]
    common = ["--account=me", "--mem=9G"]
    assert asked[2] == [
        *("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=64", "--mem=5632M"),
        *("--gres=gpu:8", "--partition=big", *common),
    ]
    assert asked[4] == [
        *("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=10240M"),
        *("--gres=gpu:1", "--partition=big", *common),
    ]
    assert asked[3] == [
        *("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=7168M", *common)
    ]
    assert all(call[-3:] == [str(ARRAY), str(path), sys.executable] for call in made)
    assert (tmp_path / "slurm").is_dir()  # SLURM does not make the folder of --output
    assert "level 4: job 106, rows 7 (report)" in done.stdout


def test_a_dry_run_submits_nothing(bin_dir: Path, tmp_path: Path) -> None:
    stand_in(bin_dir, "sbatch", "echo 1")
    done = submit(bin_dir, str(plan(tmp_path)), "--dry-run", "--max-parallel", "2")
    assert done.returncode == 0
    assert calls(bin_dir) == []
    assert len(done.stdout.splitlines()) == 6
    assert "--array=5-6%2" in done.stdout
    assert "--dependency=afterok:LEVEL3.0:LEVEL3.1" in done.stdout


def test_a_plan_that_was_made_where_no_gpu_is_says_so(bin_dir: Path, tmp_path: Path) -> None:
    path = plan(tmp_path)
    document = json.loads(path.read_text()) | {"config": {"launch": {"device": "auto"}}}
    for has_gpus in (True, False):
        for row in document["rows"]:
            row["resources"]["gpus_per_node"] *= has_gpus
        path.write_text(json.dumps(document))
        done = submit(bin_dir, str(path), "--dry-run")
        assert done.returncode == 0
        assert ("no row asks for a GPU" in done.stderr) != has_gpus


@pytest.mark.parametrize("option", ["--gpu=--partition=big", "--cpu", "--gpu-part=big"])
def test_an_old_or_shortened_option_is_taken_for_no_other(
    bin_dir: Path, tmp_path: Path, option: str
) -> None:
    done = submit(bin_dir, str(plan(tmp_path)), "--dry-run", option)
    assert done.returncode != 0
    assert option in done.stderr
    if not option.startswith("--gpu-"):
        assert "--gpu-partition=NAME" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_refused_submission_names_the_level_and_what_is_queued(
    bin_dir: Path, tmp_path: Path
) -> None:
    body = f"[ $(wc -l < {bin_dir}/calls) -lt 3 ] && echo 41 && exit 0\n"
    stand_in(bin_dir, "sbatch", body + "echo no such account >&2; exit 1")
    done = submit(bin_dir, str(plan(tmp_path)))
    assert done.returncode == 1
    assert "level 2: sbatch failed: no such account" in done.stderr
    assert "2 of 6 arrays are queued; cancel with: scancel 41 41" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_ends_early_leaves_the_names_of_the_queued_jobs(
    bin_dir: Path, tmp_path: Path
) -> None:
    stand_in(bin_dir, "sbatch", "echo 41")
    command = [sys.executable, str(SUBMIT), str(plan(tmp_path))]
    reader, writer = os.pipe()
    os.close(reader)
    for out, status in ((os.open("/dev/full", os.O_WRONLY), 2), (writer, 141)):
        done = subprocess.run(
            command, env=environment(bin_dir), stdout=out, stderr=subprocess.PIPE, check=False
        )
        os.close(out)
        assert done.returncode == status
        assert b"1 of 6 arrays are queued; cancel with: scancel 41\n" in done.stderr


def test_sbatch_that_is_gone_leaves_the_names_of_the_queued_jobs(
    bin_dir: Path, tmp_path: Path
) -> None:
    stand_in(bin_dir, "sbatch", f"echo 41; rm {bin_dir}/sbatch")
    for name in ("bash", "env", "rm"):  # of all the system nothing else, where SLURM may be
        found = shutil.which(name)
        assert found is not None
        (bin_dir / name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, str(SUBMIT), str(plan(tmp_path))],
        env={"PATH": str(bin_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "1 of 6 arrays are queued; cancel with: scancel 41",
        "sbatch: No such file or directory",
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 2}', '{"schema": 2, "rows": [{}]}'])
def test_what_is_no_plan_is_refused_in_one_line(bin_dir: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    done = submit(bin_dir, str(path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be read" in done.stderr


def test_a_plan_of_another_version_is_refused(bin_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": 1, "levels": [], "rows": []}))
    done = submit(bin_dir, str(path))
    assert done.returncode == 1
    assert "schema 1; this script reads 2" in done.stderr
    assert "no plan at" in submit(bin_dir, str(tmp_path / "none.json")).stderr
