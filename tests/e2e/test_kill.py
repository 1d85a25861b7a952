"""kill -9 at random instants of the tiny experiment: the end is equal to the byte."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from pathlib import Path

import pytest

from support.commands import call, command, environment

KILLS = 30
EXPERIMENT = "+experiment=tiny"


def _weights(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "store").glob("*/*/*.safetensors"))
    }


def _results(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((root / "store/report").glob("*/results.csv"))]


def _kill_after(seconds: float, cwd: Path) -> bool:
    """Start a run and kill it with SIGKILL; False when it had ended by itself."""
    process = subprocess.Popen(
        command("run", EXPERIMENT, "paths.root=killed"),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    for kills in range(KILLS):
        # Starting takes about four seconds, so most kills hit a stage at work, and thirty of
        # them leave the run unfinished.
        killed_it = _kill_after(rng.uniform(2.0, 14.0), tmp_path)
        assert killed_it, f"the run ended by itself after {kills} kills: kill earlier"
    started = time.monotonic()
    done = subprocess.run(
        command("run", EXPERIMENT, "paths.root=killed"), cwd=tmp_path, env=environment(), check=True
    )
    assert done.returncode == 0
    print(f"the last run, after {KILLS} kills, took {time.monotonic() - started:.0f} s")
    subprocess.run(
        command("run", EXPERIMENT, "paths.root=whole"), cwd=tmp_path, env=environment(), check=True
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert len(_weights(whole)) > 15
    assert _weights(killed) == _weights(whole)
    assert len(_results(whole)) == 1
    assert _results(killed) == _results(whole)
    garbage = call("cli", "gc", "--root", str(killed), cwd=tmp_path)
    assert "0 items" in garbage.stdout, "no scratch is left behind"
