"""Build one node of the graph, or report that it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.disk import FullDiskReport, check_free_space
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.graph import Graph
from cpt_residual.core.measure import Stopwatch
from cpt_residual.core.publish import publish
from cpt_residual.core.stage import ArtifactRef, Node, RunContext
from cpt_residual.core.store import NodeStatus, Store

_INPUTS = "inputs.json"


@dataclass(frozen=True)
class BuildOutcome:
    """What became of a node: `skipped` when it was ready. `reason` says why; `seconds` is what
    this call took (the build's own time stays in the receipt)."""

    ref: ArtifactRef
    skipped: bool
    reason: str
    seconds: float


class _Scratch(Frozen):
    """What a scratch directory was begun with. Checkpoints of other inputs must not be resumed."""

    fingerprint: str
    inputs: dict[str, str]


def build_node(store: Store, graph: Graph, node: Node | str, ctx: RunContext) -> BuildOutcome:
    """Make sure that a node's artifact is ready; inputs must be.

    Skips when it is ready; a stale or corrupt artifact is an error with its remedy, never
    rebuilt behind the user's back. Otherwise: lock, verify inputs, build in the scratch
    directory, publish, remove the scratch. Whatever interrupts it, nothing is half-published and
    the next call continues from the stage's checkpoints.
    """
    node = graph[node] if isinstance(node, str) else node
    watch = Stopwatch(threads=ctx.threads)
    status = store.status_unlocked(graph, node)
    if status.state != "missing":
        return _skip(store, node, status, watch)
    cost = node.stage.cost()
    needed = cost.disk_bytes + cost.scratch_bytes
    with FullDiskReport(store.root, needed), store.lock(node):
        status = store.status_unlocked(graph, node)  # another process may have been faster
        if status.state != "missing":
            return _skip(store, node, status, watch)
        check_free_space(store.root, needed)
        inputs = {role: store.open(graph, source) for role, source in graph.inputs_of(node).items()}
        work = _prepare_scratch(store, node, inputs)
        metrics = node.stage.build(inputs, work, ctx)
        ref = publish(store, node, inputs=inputs, metrics=metrics, watch=watch)
        store.discard(work)
    return BuildOutcome(ref, skipped=False, reason=status.reason, seconds=watch.seconds)


def _skip(store: Store, node: Node, status: NodeStatus, watch: Stopwatch) -> BuildOutcome:
    store.require_ready(node, status)
    ref = store.reference(node)
    return BuildOutcome(ref, skipped=True, reason=status.reason, seconds=watch.seconds)


def _prepare_scratch(store: Store, node: Node, inputs: Mapping[str, ArtifactRef]) -> Path:
    """The scratch directory with an empty `out/`; what a killed build left besides `out/` stays,
    if it read the same inputs."""
    work = store.work_of(node)
    expected = _Scratch(
        fingerprint=node.fingerprint,
        inputs={role: ref.content_hash for role, ref in inputs.items()},
    )
    if _read_scratch(work) != expected:
        store.discard(work)
    store.discard(work / "out")
    (work / "out").mkdir(parents=True)
    write_json_atomic(work / _INPUTS, expected)
    return work


def _read_scratch(work: Path) -> _Scratch | None:
    try:
        return _Scratch.model_validate_json((work / _INPUTS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
