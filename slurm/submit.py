#!/usr/bin/env python3
"""Submit a frozen plan to SLURM: level by level of the graph, each after the one before; rows of a
level that need the same nodes, GPUs and cores are one array.

    python -m cpt_residual.plan +experiment=llama3_500m --out PLAN.json
    python slurm/submit.py PLAN.json --gpu-partition=gpu -- --account=me --time=24:00:00

Options after `--` go to every array and win over the plan's. Needs nothing but the standard library
and `sbatch`. Prints one line per array.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parent / "array.sbatch"
SCHEMA = 2
"""Of plan.json: rows say what they need."""


@dataclass(frozen=True)
class Array:
    """Rows of one level that need the same nodes, GPUs and cores, and nothing of each other."""

    level: int
    rows: tuple[int, ...]
    stages: frozenset[str]
    nodes: int
    gpus_per_node: int
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Options:
    """How to submit: the plan, the interpreter, and extra `sbatch` options."""

    plan: Path
    python: str
    max_parallel: int | None
    gpu_partition: str | None
    common: tuple[str, ...]


def arrays_of(document: dict[str, Any]) -> list[Array]:
    """The arrays of a plan, level by level; a SystemExit that says what is wrong with it."""
    if document.get("schema") != SCHEMA:
        given = document.get("schema")
        raise SystemExit(f"plan.json has schema {given!r}; this script reads {SCHEMA}")
    rows = {int(row["index"]): row for row in document["rows"]}
    found: list[Array] = []
    for level, indices in enumerate(document["levels"]):
        groups: dict[tuple[int, int, int], list[int]] = {}
        for index in sorted(indices):
            asked = rows[index]["resources"]
            key = (int(asked["nodes"]), int(asked["gpus_per_node"]), int(asked["cores"]))
            groups.setdefault(key, []).append(index)
        for key, members in groups.items():
            stages = frozenset(str(rows[index]["stage"]) for index in members)
            memory = max(int(rows[index]["resources"]["memory_bytes"]) for index in members)
            found.append(Array(level, tuple(members), stages, *key, memory))
    return found


def lacks_gpus(document: dict[str, Any]) -> bool:
    """Whether no row asks for a GPU because `launch.device=auto` found none where it was made."""
    device = document.get("config", {}).get("launch", {}).get("device")
    asked = any(int(row["resources"]["gpus_per_node"]) for row in document["rows"])
    return device == "auto" and not asked


def resource_options(array: Array) -> list[str]:
    """What the plan's numbers are to `sbatch`. Memory is an estimate: half of it is added, and a
    GiB."""
    mebibytes = math.ceil(array.memory_bytes * 1.5 / 2**20) + 1024
    options = [
        f"--nodes={array.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={array.cores}",
        f"--mem={mebibytes}M",
    ]
    return options + ([f"--gres=gpu:{array.gpus_per_node}"] if array.gpus_per_node else [])


def sbatch_command(array: Array, options: Options, after: Sequence[str]) -> list[str]:
    """The `sbatch` call for one array; `after`: the job ids of the level before."""
    limit = f"%{options.max_parallel}" if options.max_parallel else ""
    command = [
        "sbatch",
        "--parsable",
        f"--array={spans(array.rows)}{limit}",
        f"--output={options.plan.parent / 'slurm'}/level{array.level}-%A_%a.out",
    ]
    if after:
        # a failed row must cancel what needs it, not leave it pending for ever
        command += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    command += resource_options(array)
    if array.gpus_per_node and options.gpu_partition:
        command.append(f"--partition={options.gpu_partition}")
    command += options.common
    return [*command, str(SCRIPT), str(options.plan), options.python]


def spans(rows: Sequence[int]) -> str:
    """`1-3,5`."""
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][1] == row - 1:
            found[-1][1] = row
        else:
            found.append([row, row])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
    """The options, and whether only to print."""
    own, extra = list(arguments), list[str]()
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    gone = next((given for given in own if given.partition("=")[0] in ("--gpu", "--cpu")), None)
    if gone is not None:
        raise SystemExit(
            f"{gone}: there is no such option; the plan says what rows need, --gpu-partition=NAME "
            "names the partition of those with GPUs, and options after -- go to every sbatch"
        )
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help, allow_abbrev=False)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--gpu-partition", help="partition of the rows that need GPUs")
    parser.add_argument("--max-parallel", type=int, help="array tasks that may run at once")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the tasks")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    given = parser.parse_args(own)
    plan: Path = given.plan.absolute()
    if not plan.is_file():
        raise SystemExit(f"no plan at {plan}")
    options = Options(
        plan=plan,
        python=given.python,
        max_parallel=given.max_parallel,
        gpu_partition=given.gpu_partition,
        common=tuple(extra),
    )
    return options, given.dry_run


class _Help(argparse.RawDescriptionHelpFormatter):
    pass


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def submit(arrays: Sequence[Array], options: Options, *, dry_run: bool) -> int:
    """Submit all arrays; where that ends early, say which jobs are queued by then."""
    jobs: dict[int, list[str]] = {}
    try:
        for array in arrays:
            command = sbatch_command(array, options, jobs.get(array.level - 1, []))
            mine = jobs.setdefault(array.level, [])
            if dry_run:
                mine.append(f"LEVEL{array.level}.{len(mine)}")
                _say(shlex.join(command))
                continue
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                problem = f"level {array.level}: sbatch failed: {done.stderr.strip()}"
                sys.stderr.write(problem + "\n")
                _say_queued(jobs, arrays)
                return 1
            mine.append(done.stdout.strip().split(";")[0])
            rows = f"rows {spans(array.rows)} ({', '.join(sorted(array.stages))})"
            _say(f"level {array.level}: job {mine[-1]}, {rows}")
    except (OSError, KeyboardInterrupt):
        if not dry_run:
            _say_queued(jobs, arrays)
        raise
    return 0


def _say_queued(jobs: Mapping[int, Sequence[str]], arrays: Sequence[Array]) -> None:
    queued = [job for level in jobs.values() for job in level]
    if queued:
        line = f"{len(queued)} of {len(arrays)} arrays are queued; cancel with: scancel"
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line} {' '.join(queued)}\n")


def main(arguments: Sequence[str]) -> int:
    try:
        options, dry_run = parse(arguments)
        document = json.loads(options.plan.read_text(encoding="utf-8"))
        arrays = arrays_of(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        sys.stderr.write(f"an option or the plan cannot be read: {error!r}\n")
        return 2
    if lacks_gpus(document):
        sys.stderr.write(
            "no row asks for a GPU: the plan was made where none is seen; for GPU nodes write it "
            "again with launch.device=cuda\n"
        )
    (options.plan.parent / "slurm").mkdir(exist_ok=True)
    return submit(arrays, options, dry_run=dry_run)


def enter(arguments: Sequence[str]) -> int:
    """`main`, with what files, `sbatch` and the output itself can do wrong said in one line."""
    try:
        try:
            status = main(arguments)
        except SystemExit as end:
            if isinstance(end.code, str):
                raise
            status = end.code or 0
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141  # as a program that SIGPIPE ends
    except OSError as error:
        _drop_output()
        sys.stderr.write(f"{error.filename or 'the output'}: {error.strerror or error}\n")
        return 2
    except KeyboardInterrupt:
        _drop_output()
        return 130
    return status


def _drop_output() -> None:
    """The interpreter flushes it again at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(enter(sys.argv[1:]))
