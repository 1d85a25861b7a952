"""Print the graph of an experiment with status and cost; executes nothing.

python -m cpt_residual.plan +experiment=tiny
python -m cpt_residual.plan +experiment=llama3_500m --out plan.json   # frozen, for row.py
python -m cpt_residual.plan +experiment=llama3_500m --check  # do the released models fit?
python -m cpt_residual.plan +experiment=tiny --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cpt_residual.config.compose import compose_with_files
from cpt_residual.config.schema import Experiment, Launch
from cpt_residual.core.disk import format_bytes
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Resources
from cpt_residual.core.store import Store
from cpt_residual.errors import ConfigError
from cpt_residual.launch.console import UserConsole, duration, scientific
from cpt_residual.launch.door import Parser, enter, say
from cpt_residual.launch.machine import planned_machine
from cpt_residual.launch.schedule import Grant, Machine, Span, wall_seconds
from cpt_residual.launch.visible import visible
from cpt_residual.stages.detectable import detectable_lines
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.frozen import FrozenPlan
from cpt_residual.stages.overview import Overview, PlannedStage
from cpt_residual.stages.preflight import preflight
from cpt_residual.stages.registry import localised

_NO_GPUS = "no GPU is seen here: rows ask for none; set launch.device=cuda for GPU nodes"
_TABLE_WIDTH = 140
_STYLES = {"ready": "green", "missing": "", "busy": "yellow", "stale": "red", "corrupt": "red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return enter(lambda: _main(arguments), resumes="nothing was changed")


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_intermixed_args(arguments)
    if options.out:
        _require_place(options.out)
    composed = compose_with_files(options.overrides, config_dir=options.config_dir)
    experiment = localised(composed.experiment)
    builder = Builder.of(experiment)
    graph, store = builder.graph, builder.store
    overview = Overview.of(graph, store)
    frozen = FrozenPlan.of(experiment, graph) if options.out else None
    if options.json:
        files = {"own_files": [str(path) for path in composed.own_files]}
        print(json.dumps(_as_json(experiment, overview) | files, indent=2))
    else:
        for note in composed.notes():
            say(note)
        _show(experiment, graph, overview, store, frozen)
    if options.check:
        found = preflight(builder, overview)
        sys.stdout.flush()
        say(f"checked: {found}", stream=sys.stderr)
        found.require_sound()
    if frozen:
        _write(frozen, options.out)
        say(f"plan: {options.out}", stream=sys.stderr)
        if frozen.lacks_gpus:
            say(_NO_GPUS, stream=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m cpt_residual.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides: +experiment=tiny seed=1")
    parser.add_argument("--config-dir", type=Path, help="a folder with your own experiment/ files")
    parser.add_argument("--out", type=Path, help="write the frozen plan for row.py")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="also check whether the released models fit together and can be asked (as `run` does "
        "before it builds anything); reads headers, tokenizers and templates, and loads the data "
        "of the evaluation's tasks, which is downloaded where it is not cached",
    )
    return parser


def _require_place(out: Path) -> None:
    """ConfigError unless `out` can be a file: in a folder that is there, or a new one in such."""
    folder = out.absolute().parent
    if out.is_dir():
        problem = f"{out} is a folder"
    elif folder.exists() and not folder.is_dir():
        problem = f"{folder} is a file"
    elif not folder.exists() and not folder.parent.is_dir():
        problem = f"no such folder: {folder.parent}"
    else:
        return
    raise ConfigError(
        f"the plan cannot be written to {out}",
        problems=[problem],
        remedy="Nothing was written. Name a file in a folder that is there: --out plan.json",
    )


def _write(plan: FrozenPlan, out: Path) -> None:
    try:
        plan.write(out)
    except OSError as error:
        raise ConfigError(
            f"the plan cannot be written to {out}",
            problems=[error.strerror or str(error)],
            remedy="Nothing was written. Name a file in a folder of yours: --out plan.json",
        ) from None


def _show(
    experiment: Experiment,
    graph: Graph,
    overview: Overview,
    store: Store,
    frozen: FrozenPlan | None,
) -> None:
    console = UserConsole()
    console.width = max(console.width, _TABLE_WIDTH)  # a narrow terminal wraps, nothing is cut
    identity = f"  seed {experiment.seed}  plan {graph.fingerprint[:8]}"
    console.print(Text.assemble((visible(experiment.name), "bold"), identity))
    console.print(experiment.question, style="italic", soft_wrap=True)
    timetable = overview.timetable(planned_machine(experiment.launch))
    console.print(_table(overview.stages, timetable, frozen))
    merged = f"evaluate:{experiment.roles.merged}"
    if merged in graph:
        console.print(graph.lineage(merged), soft_wrap=True)
    reused, missing = len(overview.reused), len(overview.to_build)
    counted = f"{len(overview.stages)} stages: {reused} ready and reused, {missing} to build."
    console.print(
        f"\n{counted} {_estimate(experiment.launch, overview, timetable)}", soft_wrap=True
    )
    for line in detectable_lines(experiment):
        console.print(line, soft_wrap=True)
    for stage in overview.stages:
        if stage.status.state in ("stale", "corrupt", "busy"):
            reason = stage.status.reason.removeprefix(f"{stage.name}: ")
            console.print(f"{stage.name}: {reason}", style="red", soft_wrap=True)
    console.print(f"store: {store.root}", soft_wrap=True)


def _estimate(launch: Launch, overview: Overview, timetable: Mapping[str, Span]) -> str:
    """What building the missing stages takes."""
    if not overview.to_build:
        return "Nothing to do."
    serial = sum(stage.cost.seconds for stage in overview.to_build)
    largest = max(overview.to_build, key=lambda stage: stage.resources.memory_bytes)
    return (
        f"Estimated: {scientific(overview.flops) or 'no counted'} FLOPs, about "
        f"{duration(wall_seconds(timetable.values()))} on {_machine(launch)} "
        f"({duration(serial)} one after another), "
        f"at most {format_bytes(largest.resources.memory_bytes)} of memory ({largest.name}), "
        f"{format_bytes(overview.disk_bytes_needed)} of disk."
    )


def _machine(launch: Launch) -> str:
    machine = planned_machine(launch)
    fewer = launch.cores is not None and launch.cores > machine.cores
    note = f" (launch.cores={launch.cores}, but there are no more)" if fewer else ""
    several = f" on {launch.num_nodes} nodes" if launch.num_nodes > 1 else ""
    return f"{machine}{several}{note}"


def _table(
    stages: Sequence[PlannedStage], timetable: Mapping[str, Span], frozen: FrozenPlan | None
) -> Table:
    """Each stage in a line, with its row's number where a plan is written. `start` and `on`: what
    runs beside what on the machine of the estimate."""
    rows = {row.fingerprint: str(row.index) for row in frozen.rows} if frozen else {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    if rows:
        table.add_column("row", justify="right", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for column in ("tokens", "steps", "FLOPs", "start", "time", "on", "memory", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in stages:
        cost, span = stage.cost, timetable.get(stage.name)
        state = stage.status.state
        table.add_row(
            *([rows[stage.node.fingerprint]] if rows else []),
            stage.name,
            stage.node.fingerprint[:8],
            Text(state, style=_STYLES[state]),
            f"{cost.tokens:,}" if cost.tokens else "",
            f"{cost.steps:,}" if cost.steps else "",
            scientific(cost.flops),
            duration(span.start) if span else "",
            duration(cost.seconds) if cost.seconds else "",
            _slots(span.grant) if span else "",
            _memory(stage.resources),
            _bytes(cost.disk_bytes),
        )
    return table


def _slots(grant: Grant) -> str:
    """`GPU 3`, `8 GPUs` or `2 cores`."""
    if len(grant.gpus) == 1:
        return f"GPU {grant.gpus[0]}"
    return str(Machine(grant.cores)) if not grant.gpus else f"{len(grant.gpus)} GPUs"


def _memory(resources: Resources) -> str:
    """Of each GPU where the stage has some, else of the host."""
    if resources.gpus_per_node:
        return f"{format_bytes(resources.gpu_memory_bytes)}/GPU"
    return _bytes(resources.memory_bytes)


def _bytes(number: int) -> str:
    return format_bytes(number) if number else ""


def _as_json(experiment: Experiment, overview: Overview) -> dict[str, object]:
    timetable = overview.timetable(planned_machine(experiment.launch))
    return {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "stages": [
            {
                "node": stage.name,
                "level": stage.node.level,
                "fingerprint": stage.node.fingerprint,
                "status": stage.status.state,
                "reason": stage.status.reason,
                "inputs": dict(stage.node.inputs),
                "cost": vars(stage.cost),
                "resources": vars(stage.resources),
                "expected": _expected(timetable.get(stage.name)),
            }
            for stage in overview.stages
        ],
    }


def _expected(span: Span | None) -> dict[str, object] | None:
    """When and where a missing stage would run."""
    if span is None:
        return None
    grant = {"cores": span.grant.cores, "gpus": span.grant.gpus}
    return {"start_seconds": span.start, "end_seconds": span.end, **grant}


if __name__ == "__main__":
    sys.exit(main())
