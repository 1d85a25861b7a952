"""Rows of the plan: status and estimated cost of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Cost, Node, Resources
from cpt_residual.core.store import NodeStatus, Store
from cpt_residual.launch.schedule import Job, Machine, Span, simulate


@dataclass(frozen=True)
class PlannedStage:
    """One row of the plan. needs: the rows whose artifacts it reads."""

    node: Node
    status: NodeStatus
    cost: Cost
    resources: Resources
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.node.stage.node

    @property
    def is_ready(self) -> bool:
        return self.status.state == "ready"


@dataclass(frozen=True)
class Overview:
    """All rows of a graph, inputs before users; nodes that share an artifact appear once."""

    stages: tuple[PlannedStage, ...]

    @classmethod
    def of(cls, graph: Graph, store: Store) -> Overview:
        """Ask the store for the status of every node (quick check), each stage what it takes."""
        first = {node.fingerprint: node.stage.node for node in reversed(graph.nodes)}
        return cls(
            tuple(
                PlannedStage(
                    node,
                    store.status(graph, node),
                    node.stage.cost(),
                    node.stage.resources(),
                    tuple(first[each.fingerprint] for each in graph.inputs_of(node).values()),
                )
                for node in graph.distinct()
            )
        )

    @property
    def to_build(self) -> tuple[PlannedStage, ...]:
        return tuple(stage for stage in self.stages if not stage.is_ready)

    @property
    def reused(self) -> tuple[PlannedStage, ...]:
        return tuple(stage for stage in self.stages if stage.is_ready)

    @property
    def busy(self) -> tuple[PlannedStage, ...]:
        """Those of `to_build` that another process builds right now."""
        return tuple(stage for stage in self.stages if stage.status.state == "busy")

    @property
    def disk_bytes_needed(self) -> int:
        """Bytes that building everything missing needs: all artifacts and the largest scratch."""
        scratch = max((stage.cost.scratch_bytes for stage in self.to_build), default=0)
        return scratch + sum(stage.cost.disk_bytes for stage in self.to_build)

    @property
    def flops(self) -> float:
        return sum(stage.cost.flops for stage in self.to_build)

    def jobs(self) -> dict[str, Job]:
        """The missing stages as jobs without work."""
        missing = frozenset(stage.name for stage in self.to_build)
        return {
            stage.name: Job(
                name=stage.name,
                needs=missing.intersection(stage.needs),
                resources=stage.resources,
                seconds=stage.cost.seconds,
            )
            for stage in self.to_build
        }

    def timetable(self, machine: Machine) -> dict[str, Span]:
        """When each missing stage would run on `machine`, as the local executor orders them."""
        return simulate(self.jobs(), machine)
