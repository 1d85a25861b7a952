"""Fetch what a run needs from the network, for machines without access."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console

from cpt_residual.config.schema import Experiment
from cpt_residual.core.disk import FullDiskReport
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Node
from cpt_residual.errors import CptResidualError
from cpt_residual.launch.console import paragraph
from cpt_residual.launch.door import say_error
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.session import (
    build_all,
    check_released,
    machine_for,
    new_run,
    require_store,
    tell_unfinished,
)


@runtime_checkable
class NeedsNetwork(Protocol):
    """A stage may say that it downloads something while it is built."""

    @property
    def needs_network(self) -> bool: ...


def network_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that download, and what these are made from; inputs before users."""
    wanted: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.stage, NeedsNetwork) and node.stage.needs_network:
            wanted |= {node.fingerprint, *(each.fingerprint for each in graph.ancestors(node))}
    return tuple(node for node in graph.distinct() if node.fingerprint in wanted)


def prefetch_experiment(experiment: Experiment, console: Console) -> tuple[CptResidualError, ...]:
    """Build the stages that download, then fetch the data of the evaluation's tasks.

    Afterwards the experiment runs where the same `paths.root` and hub cache are, without network.
    Returns what went wrong; what was fetched is kept. Raises before any work as a run does.
    """
    builder = Builder.of(experiment)
    wanted = {node.fingerprint for node in network_nodes(builder.graph)}
    everything = Overview.of(builder.graph, builder.store)
    overview = Overview(
        tuple(stage for stage in everything.stages if stage.node.fingerprint in wanted)
    )
    require_store(builder.store, overview)
    with FullDiskReport(Path(experiment.paths.root), 0):
        errors: Mapping[str, CptResidualError] = {}
        if overview.stages:
            run_dir = new_run(builder)
            machine = machine_for(builder, overview)
            errors = build_all(builder, overview, run_dir, machine, console)
            if errors:
                tell_unfinished(errors, run_dir, console)
        missing = _fetch_evaluation(experiment, console)
        faults = _check(builder, console)
    listed = [line for fault in faults for line in fault.problems]
    new = [each for each in missing if not any(line.endswith(each.what) for line in listed)]
    for error in (*new, *faults):
        say_error(error)
    return (*errors.values(), *new, *faults)


def _check(builder: Builder, console: Console) -> tuple[CptResidualError, ...]:
    """Whether what was fetched fits together, as the run will ask."""
    try:
        check_released(builder, Overview.of(builder.graph, builder.store), console)
    except CptResidualError as error:
        return (error,)
    return ()


def _fetch_evaluation(experiment: Experiment, console: Console) -> tuple[CptResidualError, ...]:
    from cpt_residual.evaluation.stock import fetch_task_data

    suites = [experiment.suites[name] for name in experiment.evaluation.suites]
    tasks = [task for suite in suites for task in suite.stock_tasks()]
    try:
        for name in fetch_task_data(tasks):
            paragraph(console, f"data of task {name}: ready")
    except CptResidualError as error:
        return (error,)
    return ()
