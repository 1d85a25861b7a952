"""Build one node of an experiment's graph in this process: what workers and array tasks call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

from cpt_residual.config.schema import Experiment
from cpt_residual.core.build import BuildOutcome, build_node
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Node, ProgressReport, RunContext, is_tracked
from cpt_residual.core.store import Store
from cpt_residual.stages.registry import build_graph, open_store
from cpt_residual.tracking.sinks import open_sinks


@dataclass(frozen=True)
class BuildRequest:
    """Which node of which experiment to build, and where the run keeps its logs."""

    experiment: Experiment
    node: str
    run_dir: Path


@dataclass(frozen=True)
class Builder:
    """An experiment's graph and store, ready to build nodes."""

    experiment: Experiment
    graph: Graph
    store: Store

    @classmethod
    def of(cls, experiment: Experiment, *, run: Path | None = None) -> Self:
        """Raises ConfigError or ArtifactError when the graph cannot be made."""
        store = open_store(experiment, run=run)
        return cls(experiment, build_graph(experiment, store), store)

    def build(self, request: BuildRequest, report: ProgressReport) -> BuildOutcome:
        """Build the node, or skip it when ready; all its inputs must be ready.

        Raises a `CptResidualError` with the reason when it cannot be built.
        """
        node = self.graph[request.node]
        ctx = RunContext(
            run_dir=request.run_dir, threads=node.stage.resources().cores, progress=report
        )
        ready = self.store.status(self.graph, node).state == "ready"
        if ready or not is_tracked(node.stage):
            return build_node(self.store, self.graph, node, ctx)
        return self._build_tracked(node, ctx)

    def _build_tracked(self, node: Node, ctx: RunContext) -> BuildOutcome:
        with open_sinks(
            self.experiment.tracking,
            experiment=self.experiment.name,
            seed=self.experiment.seed,
            node=node,
            run_dir=ctx.run_dir,
        ) as sinks:
            outcome = build_node(self.store, self.graph, node, replace(ctx, metrics=sinks))
            sinks.summarise(outcome.ref.metrics)
            return outcome


def execute(request: BuildRequest, report: ProgressReport) -> BuildOutcome:
    """What a worker process runs for each stage."""
    return _builder(request.experiment.model_dump_json(), request.run_dir).build(request, report)


@lru_cache(maxsize=1)
def _builder(experiment_json: str, run: Path) -> Builder:
    """One graph and one store per worker: a store verifies each artifact once per process."""
    return Builder.of(Experiment.model_validate_json(experiment_json), run=run)
