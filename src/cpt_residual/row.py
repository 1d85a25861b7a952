"""Build one row of a frozen plan: one task of a SLURM array, or a step by hand.

    python -m cpt_residual.row plan.json 7

A row that is ready is skipped; a row whose inputs are not ready is refused. No Hydra.
The row of the report ends the run as `run` does, with its table and verdict.
Exit status: 0 done; 2 bad input, too little disk or the like; 1 the stage failed otherwise; 75 a
training was stopped by a signal from outside; 130 Ctrl-C, 143 SIGTERM: the same row resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cpt_residual.core.stage import is_tracked
from cpt_residual.errors import ConfigError
from cpt_residual.launch.console import BuildConsole, UserConsole, duration, paragraph
from cpt_residual.launch.door import Parser, enter
from cpt_residual.launch.environment import set_maths_defaults
from cpt_residual.launch.stopping import terminable
from cpt_residual.stages.closing import (
    ENVIRONMENT_FILE,
    begin,
    end,
    record_environment,
    say_uploads,
)
from cpt_residual.stages.execute import Builder, BuildRequest
from cpt_residual.stages.frozen import FrozenPlan
from cpt_residual.stages.registry import REPORT_NODE
from cpt_residual.tracking.sinks import check_tracking


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return enter(lambda: _main(arguments), resumes="build the same row again to resume")


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m cpt_residual.row", description=__doc__)
    parser.add_argument("plan", type=Path, help="written by python -m cpt_residual.plan --out")
    parser.add_argument("index", type=int, help="row number, e.g. $SLURM_ARRAY_TASK_ID")
    options = parser.parse_args(arguments)
    with terminable():
        _build(options.plan, options.index)
    return 0


def _build(path: Path, index: int) -> None:
    plan = FrozenPlan.read(path)
    row = plan.row(index)
    set_maths_defaults()
    run_dir = _run_dir(plan)
    builder = Builder.of(plan.config, run=run_dir)
    present = builder.graph[row.node].fingerprint
    if present != row.fingerprint:
        raise ConfigError(
            f"row {index} ({row.node}) of {path} was frozen as {row.fingerprint[:16]}, "
            f"but this code gives {present[:16]}",
            remedy="The code, a local source or the plan file itself was changed since. Nothing "
            "was built. Write it again: python -m cpt_residual.plan +experiment=NAME --out PLAN",
        )
    _begin(builder, run_dir)
    screen = UserConsole()
    if _will_be_tracked(builder, row.node) and (tracked := check_tracking(plan.config.tracking)):
        paragraph(screen, tracked)
    is_last = row.node == REPORT_NODE
    try:
        with BuildConsole(screen, total_stages=1) as console:
            _build_row(builder, BuildRequest(plan.config, row.node, run_dir), console)
        if is_last:
            end(builder, run_dir, screen, seconds=None)
    finally:
        if not is_last:
            say_uploads(run_dir, screen, row.node)


def _will_be_tracked(builder: Builder, name: str) -> bool:
    node = builder.graph[name]
    is_missing = builder.store.status(builder.graph, node).state != "ready"
    return name == REPORT_NODE or (is_tracked(node.stage) and is_missing)


def _build_row(builder: Builder, request: BuildRequest, console: BuildConsole) -> None:
    console.started(request.node)
    outcome = builder.build(
        request,
        lambda done, total, unit: console.progressed(request.node, done, total, unit),
    )
    if outcome.skipped:
        console.skipped(request.node, outcome.reason)
    else:
        console.finished(request.node, f"{duration(outcome.seconds)}  {outcome.ref.path}")


def _run_dir(plan: FrozenPlan) -> Path:
    """One folder for all rows of a plan."""
    name = f"rows-{plan.experiment}-{plan.fingerprint[:8]}"
    return Path(plan.config.paths.root) / "runs" / name


def _begin(builder: Builder, folder: Path) -> None:
    """The first row begins the run; one with other code or libraries replaces their record."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ENVIRONMENT_FILE).exists():
            begin(builder, folder)
        else:
            record_environment(folder)
    except OSError as error:
        raise ConfigError(
            f"nothing can be written below the plan's paths.root: {folder}: {error.strerror}",
            remedy="Nothing was built. Write the plan again with another folder: paths.root=DIR, "
            "or fix its rights.",
        ) from None


if __name__ == "__main__":
    sys.exit(main())
