"""Waiting for what other processes do."""

from __future__ import annotations

import time
from pathlib import Path


def wait_for(path: Path, seconds: float = 30) -> str:
    """The text of a file that another process writes, once there is any."""
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)
    return path.read_text()


def wait_until_gone(pid: int, seconds: float = 20) -> None:
    """Returns when the process has ended, whether or not anybody has waited for it."""
    deadline = time.monotonic() + seconds
    while _lives(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
