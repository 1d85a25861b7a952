"""The stage protocol: a frozen value with inputs, recipe and cost that builds one artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

Metric = float | int | str | bool
Metrics = dict[str, Metric]
"""What a build reports, kept in the manifest: deterministic values, no times, hosts or paths."""


@dataclass(frozen=True)
class Cost:
    """What a stage is expected to cost. Zero means unknown or negligible.

    tokens: training tokens; steps: optimizer steps; flops: floating point operations;
    seconds: wall time on its resources; disk_bytes: size of the artifact; scratch_bytes: what the
    build needs besides it (checkpoints), freed afterwards. The rates are those of `core/rates.py`.
    """

    tokens: int = 0
    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    disk_bytes: int = 0
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Resources:
    """What a stage occupies while it is built: how it runs, never part of its identity.

    nodes: machines; the rest is of each of them. gpus: whole devices, for this stage alone;
    cores: threads it keeps busy; memory_bytes: peak of host memory; gpu_memory_bytes: peak on each
    GPU.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cores: int = 1
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0


ONE_CORE = Resources()


@dataclass(frozen=True)
class ArtifactRef:
    """A published, verified artifact. `path` holds its files."""

    stage: str
    node: str
    fingerprint: str
    content_hash: str
    path: Path
    metrics: Mapping[str, Metric]


ProgressReport = Callable[[int, int, str], None]
"""report(done, total, unit): how far a build is, in units such as `tokens` or `prompts`."""


class MetricSink(Protocol):
    """Where a stage logs its series; the implementations live in `tracking`."""

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None: ...


def no_progress(done: int, total: int, unit: str) -> None:
    """A ProgressReport that tells nobody."""
    del done, total, unit


@dataclass(frozen=True)
class RunContext:
    """What a build may use besides its inputs. Nothing in it may change the bytes published.

    threads: torch threads of this process; run_dir: folder of the run (logs);
    progress: tells the terminal; metrics: where series go (JSON lines, W&B), or None.
    """

    run_dir: Path
    threads: int = 1
    progress: ProgressReport = no_progress
    metrics: MetricSink | None = None


@runtime_checkable
class Stage(Protocol):
    """One transformation. Implementations are frozen dataclasses, one file each in `stages/`.

    `build` writes what is to be published below `work/out/`; the rest of `work/` is scratch that
    survives a kill (checkpoints). It never decides whether to run, where to publish or what to
    log to. Raises a `CptResidualError` for everything a user can fix.

    Four members are optional: `describe() -> str` adds a few words to the lineage tree;
    `needs_network -> bool` (a property) says that `build` downloads, so `--prefetch` builds it;
    the class attribute `links_allowed = True` lets `out/` hold links to files outside the store
    (released models of many gigabytes); their content is hashed all the same; and the class
    attribute `tracked = True` gives the stage a run of its own in W&B for its series and scores.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def node(self) -> str:
        """Name of this stage in the experiment's graph, e.g. `cpt:base_cpt`."""
        ...

    def recipe(self) -> BaseModel:
        """Everything that decides the published bytes besides the inputs."""
        ...

    def inputs(self) -> Mapping[str, Stage]:
        """The stages whose artifacts `build` reads, by role."""
        ...

    def cost(self) -> Cost:
        """An estimate made without reading artifacts (shown by the plan)."""
        ...

    def resources(self) -> Resources:
        """What `build` takes. SLURM is asked for all of it; the local executor counts cores and
        GPUs, not memory."""
        ...

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics: ...


@dataclass(frozen=True)
class Node:
    """A stage placed in a graph: its fingerprint and level (0 = no inputs)."""

    stage: Stage
    fingerprint: str
    level: int
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])  # role -> node name


def is_tracked(stage: Stage) -> bool:
    """Whether the stage has a W&B run of its own."""
    return bool(getattr(stage, "tracked", False))
