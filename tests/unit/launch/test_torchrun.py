"""Starting and stopping ranks, with plain processes in their place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cpt_residual.errors import LaunchError
from cpt_residual.launch.environment import child_environment, rendezvous_of
from cpt_residual.launch.torchrun import (
    StopFlag,
    killed_rank,
    last_lines,
    run_ranks,
    stop_requests,
    torchrun_command,
)
from support.processes import wait_for, wait_until_gone


def run(code: str, tmp_path: Path, *, flag: StopFlag | None = None) -> int:
    return run_ranks(
        [sys.executable, "-c", code],
        environment=child_environment(threads=1),
        log=tmp_path / "log",
        on_poll=lambda: None,
        flag=StopFlag() if flag is None else flag,
    )


def test_the_command_is_written_out() -> None:
    command = torchrun_command(module="some.module", arguments=["job.json"], num_processes=4)
    assert command[:4] == [sys.executable, "-m", "cpt_residual.launch.torchrun", str(os.getpid())]
    assert command[4:] == [
        *(sys.executable, "-m", "torch.distributed.run"),
        "--standalone",
        "--nproc_per_node=4",
        "--max_restarts=0",
        "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
        "--shutdown-timeout=600",
        "--module",
        "some.module",
        "job.json",
    ]


def test_several_nodes_meet_at_the_first_of_the_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "n07")
    place = rendezvous_of(2)
    assert place is not None
    assert place.startswith("n07:")
    command = torchrun_command(
        module="m", arguments=[], num_processes=8, num_nodes=2, rendezvous=place
    )
    assert command[4:9] == [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1")
    ]
    assert {"--nnodes=2", f"--rdzv-endpoint={place}", "--nproc_per_node=8"} <= set(command)
    assert "--standalone" not in command
    assert rendezvous_of(1) is None
    with pytest.raises(LaunchError, match="training on 3 nodes needs a SLURM job of as many"):
        rendezvous_of(3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_becomes_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as flag:
        assert not flag
        os.kill(os.getpid(), number)
        assert flag
        assert flag.name == number.name
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_get_a_flag_that_never_rises() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_requests() as flag:
            seen.append(bool(flag))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_exit_codes_and_output_are_kept(tmp_path: Path) -> None:
    assert run("print('hello\\n\\nworld'); raise SystemExit(3)", tmp_path) == 3
    assert last_lines(tmp_path / "log", 5) == ["hello", "world"]
    assert last_lines(tmp_path / "absent") == []


def test_the_flag_is_passed_on_once_as_sigterm(tmp_path: Path) -> None:
    flag = StopFlag()
    flag.name = "SIGINT"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "time.sleep(60)"
    )
    # The signal may come before the handler is there; both ends are ends by SIGTERM.
    assert run(code, tmp_path, flag=flag) in (7, -signal.SIGTERM)


def test_an_error_while_polling_ends_the_ranks(tmp_path: Path) -> None:
    pids: list[int] = []

    def poll() -> None:
        lines = last_lines(tmp_path / "log")
        if lines:
            pids.append(int(lines[0]))
            raise KeyError("relay")

    with pytest.raises(KeyError):
        run_ranks(
            [
                sys.executable,
                "-c",
                "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
            ],
            environment=child_environment(threads=1),
            log=tmp_path / "log",
            on_poll=poll,
            flag=StopFlag(),
        )
    wait_until_gone(pids[0])


def test_ranks_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    child = (
        "from cpt_residual.launch.torchrun import die_with_parent; import os, pathlib, time;"
        f"die_with_parent(); pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()));"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
        ],
        env=child_environment(threads=1),
    )
    try:
        pid = int(wait_for(tmp_path / "pid"))
    finally:
        parent.kill()
        parent.wait()
    wait_until_gone(pid)


def test_a_killed_rank_is_read_from_torchruns_report(tmp_path: Path) -> None:
    """The report is torchrun's, of two real processes; no other library is imported by them."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    code = run_ranks(
        [sys.executable, *torchrun, str(script)],
        environment=child_environment(threads=1),
        log=tmp_path / "log",
        on_poll=lambda: None,
        flag=StopFlag(),
    )
    assert code == 1
    assert killed_rank(tmp_path / "log") == (1, signal.SIGKILL)
    assert killed_rank(tmp_path / "no log") is None
