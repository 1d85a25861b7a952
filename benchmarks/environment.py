"""What every result is kept with: the machine, the versions, the code."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cpt_residual.core.run_record import code_version, git_state, library_versions

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def keep(name: str, result: Mapping[str, object]) -> Path:
    """Write `results/<name>.json`: the result with its environment."""
    RESULTS.mkdir(exist_ok=True)
    environment = {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": library_versions(),
        "code": code_version(),
        "git": git_state(Path(__file__).parent),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**result, "environment": environment}, indent=1) + "\n")
    return path
