"""Run the package's commands as a user does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """This environment, with this checkout's package first and the hubs switched off."""
    source = str(REPOSITORY / "src")
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "140",
    }


def command(module: str, *arguments: str) -> list[str]:
    """`python -m cpt_residual.<module> ...`."""
    return [sys.executable, "-m", f"cpt_residual.{module}", *arguments]


def call(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end from `cwd`; the exit status is the caller's to check."""
    return subprocess.run(
        command(module, *arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def run_code(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `call`, of a program given as text."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
