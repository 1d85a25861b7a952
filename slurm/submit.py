#!/usr/bin/env python3
"""Submit a frozen plan to SLURM: one array per level of the graph, each after the one before.

    python -m cpt_residual.plan +experiment=llama3_500m --out PLAN.json
    python slurm/submit.py PLAN.json --gpu="--gres=gpu:8 --time=24:00:00" -- --account=me

Needs nothing but the standard library and `sbatch`. Prints one line per array.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parent / "array.sbatch"


@dataclass(frozen=True)
class Level:
    """Rows first..last of the plan, which need nothing of each other."""

    number: int
    first: int
    last: int
    stages: frozenset[str]
    gpu: bool


@dataclass(frozen=True)
class Options:
    """How to submit: the plan, the interpreter, and extra `sbatch` options."""

    plan: Path
    python: str
    max_parallel: int | None
    gpu: tuple[str, ...]
    cpu: tuple[str, ...]
    common: tuple[str, ...]


def levels_of(document: dict[str, Any]) -> list[Level]:
    """The levels of a plan; a SystemExit that says what is wrong with it otherwise."""
    if document.get("schema") != 1:
        raise SystemExit(f"plan.json has schema {document.get('schema')!r}; this script reads 1")
    rows = {int(row["index"]): row for row in document["rows"]}
    found: list[Level] = []
    for number, indices in enumerate(document["levels"]):
        if not indices or sorted(indices) != list(range(min(indices), max(indices) + 1)):
            raise SystemExit(f"level {number} is empty or not a run of consecutive rows: {indices}")
        stages = frozenset(str(rows[index]["stage"]) for index in indices)
        gpu = any(rows[index]["gpu"] for index in indices)
        found.append(Level(number, min(indices), max(indices), stages, gpu))
    return found


def sbatch_command(level: Level, options: Options, after: str | None) -> list[str]:
    """The `sbatch` call for one level; `after` is the job id of the level before."""
    limit = f"%{options.max_parallel}" if options.max_parallel else ""
    command = [
        "sbatch",
        "--parsable",
        f"--array={level.first}-{level.last}{limit}",
        f"--output={options.plan.parent / 'slurm'}/level{level.number}-%A_%a.out",
    ]
    if after is not None:
        # a failed row must cancel what needs it, not leave it pending for ever
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    command += options.common
    command += options.gpu if level.gpu else options.cpu
    return [*command, str(SCRIPT), str(options.plan), options.python]


def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
    """The options, and whether only to print."""
    own, extra = list(arguments), list[str]()
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--gpu", default="", help="sbatch options of levels that train or evaluate")
    parser.add_argument("--cpu", default="", help="sbatch options of all other levels")
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
        gpu=tuple(shlex.split(given.gpu)),
        cpu=tuple(shlex.split(given.cpu)),
        common=tuple(extra),
    )
    return options, given.dry_run


class _Help(argparse.RawDescriptionHelpFormatter):
    pass


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def submit(levels: Sequence[Level], options: Options) -> int:
    """Submit all levels; where that ends early, say which jobs are queued by then."""
    jobs: list[str] = []
    try:
        for level in levels:
            command = sbatch_command(level, options, jobs[-1] if jobs else None)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                problem = f"level {level.number}: sbatch failed: {done.stderr.strip()}"
                sys.stderr.write(problem + "\n")
                _say_queued(jobs, levels)
                return 1
            jobs.append(done.stdout.strip().split(";")[0])
            rows = f"rows {level.first}-{level.last}"
            _say(
                f"level {level.number}: job {jobs[-1]}, {rows} ({', '.join(sorted(level.stages))})"
            )
    except (OSError, KeyboardInterrupt):
        _say_queued(jobs, levels)
        raise
    return 0


def _say_queued(jobs: Sequence[str], levels: Sequence[Level]) -> None:
    if jobs:
        line = f"{len(jobs)} of {len(levels)} levels are queued; cancel with: scancel"
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line} {' '.join(jobs)}\n")


def main(arguments: Sequence[str]) -> int:
    try:
        options, dry_run = parse(arguments)
        levels = levels_of(json.loads(options.plan.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        sys.stderr.write(f"an option or the plan cannot be read: {error!r}\n")
        return 2
    (options.plan.parent / "slurm").mkdir(exist_ok=True)
    if not dry_run:
        return submit(levels, options)
    after: str | None = None
    for level in levels:
        _say(shlex.join(sbatch_command(level, options, after)))
        after = f"LEVEL{level.number}"
    return 0


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
