"""How long a plan takes, beside the least a Python program of its kind can take.

    python benchmarks/plan.py

Alternates, in fresh processes, `python -m cpt_residual.plan +experiment=tiny` with an interpreter
that only imports the three libraries a plan cannot do without (pydantic, rich, hydra's composer).
Result: medians and their ratio, in results/plan.json. The goal is a plan within 1.5 seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from harness import keep

RUNS = 9
FLOOR = (
    "import pydantic, rich.console, rich.table; from hydra import compose, initialize_config_dir"
)


def seconds(command: list[str], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    plan = [sys.executable, "-m", "cpt_residual.plan", "+experiment=tiny"]
    floor = [sys.executable, "-c", FLOOR]
    times: dict[str, list[float]] = {"plan": [], "floor": []}
    with tempfile.TemporaryDirectory() as folder:
        seconds(plan, folder)  # byte code and disk caches
        for _ in range(RUNS):
            times["plan"].append(seconds(plan, folder))
            times["floor"].append(seconds(floor, folder))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "seconds": times,
        "median_seconds": medians,
        "ratio_to_floor": medians["plan"] / medians["floor"],
    }
    path = keep("plan", result)
    print(f"plan {medians['plan']:.2f} s, imports alone {medians['floor']:.2f} s: {path}")


if __name__ == "__main__":
    main()
