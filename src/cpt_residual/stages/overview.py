"""What a graph would cost and what is there already: the rows of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Cost, Node
from cpt_residual.core.store import NodeStatus, Store


@dataclass(frozen=True)
class PlannedStage:
    """One row of the plan."""

    node: Node
    status: NodeStatus
    cost: Cost

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
        """Ask the store for the status of every node (quick check) and each stage for its cost."""
        return cls(
            tuple(
                PlannedStage(node, store.status(graph, node), node.stage.cost())
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
    def peak_memory_bytes(self) -> int:
        """The largest single stage among those to build."""
        return max((stage.cost.memory_bytes for stage in self.to_build), default=0)

    @property
    def flops(self) -> float:
        return sum(stage.cost.flops for stage in self.to_build)

    def wall_seconds(self, cores: int) -> float:
        """Estimated wall time on `cores` cores: list scheduling in the order of the plan."""
        return _makespan(self.to_build, cores)


def _makespan(stages: Sequence[PlannedStage], cores: int) -> float:
    free = [0.0] * cores  # when each core is free
    end: dict[str, float] = {}
    for stage in stages:
        wanted = min(stage.cost.cores, cores)
        ready = max((end.get(name, 0.0) for name in stage.node.inputs.values()), default=0.0)
        free.sort()
        start = max(ready, free[wanted - 1])
        end[stage.name] = start + stage.cost.seconds
        free[:wanted] = [end[stage.name]] * wanted
    return max(end.values(), default=0.0)
