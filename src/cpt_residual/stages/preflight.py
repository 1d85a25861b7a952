"""Checks of the whole graph before anything is built.

Stages that read a released model, or one that training or merging makes from it, state checks of
its config, tokenizer, chat template and tensor layout. All of them run, and all faults are
reported at once. Models that the experiment makes itself fit by construction and are not checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from cpt_residual.config.schema import Experiment
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Node, Stage
from cpt_residual.core.store import Store
from cpt_residual.errors import CompatibilityError, CptResidualError, WorkerError
from cpt_residual.launch.endings import MEMORY_HINT
from cpt_residual.launch.pool import Event, Report, run_jobs
from cpt_residual.launch.schedule import Job, Machine
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.source import Source, check_model

Check = partial[object]
"""Raises a CptResidualError where something does not fit. Equal function and arguments: the same
check, which runs once for all stages that ask for it."""

_NUM_NODES_SHOWN = 3
_NUM_LINES_SHOWN = 20


FolderOf = Callable[[Stage], Path | None]
"""folder_of(stage) -> a folder with the config, the tokenizer and the tensor layout of the model
that `stage` makes; None when that is not known yet."""


@runtime_checkable
class Checked(Protocol):
    """A stage may state what must hold before it, or anything it needs, is built."""

    def checks(self, folder_of: FolderOf) -> Iterator[Check]: ...


@runtime_checkable
class SameLayout(Protocol):
    """A stage whose model has the config, tokenizer and tensor layout of one of its inputs."""

    @property
    def layout_of(self) -> Stage: ...


@dataclass(frozen=True)
class Preflight:
    """Outcome of the checks. checked: the released models that were looked at; absent: those that
    are not here yet; faults: each distinct error with the nodes that would have met it."""

    checked: tuple[str, ...]
    absent: tuple[str, ...]
    faults: tuple[tuple[CptResidualError, tuple[str, ...]], ...]

    def __str__(self) -> str:
        """For a line after `checked:`."""
        absent = f"; not here yet: {', '.join(self.absent)}" if self.absent else ""
        if not self.checked:
            return f"no released model is here{absent}" if absent else "no released model is used"
        return f"configs, tokenizers, templates and tensors of {', '.join(self.checked)}{absent}"

    def require_sound(self) -> None:
        """Raises one CompatibilityError that lists all faults."""
        if not self.faults:
            return
        number = len(self.faults)
        raise CompatibilityError(
            f"{number} {'fault' if number == 1 else 'faults'} would stop this experiment later",
            problems=[line for fault in self.faults for line in _lines(*fault)],
            remedy="Nothing was built.",
        )


def preflight(builder: Builder, overview: Overview) -> Preflight:
    """Check all released models that are here, then all stages that are not built yet.

    Nothing is asked of models that have failed their own check. Cost: some ten seconds, in a
    process that ends with it, since torch and transformers are imported, and what it takes to load
    the data of stock tasks, which is downloaded where it is not cached; reads headers, configs and
    tokenizers, and weights only of tensors that are stored twice. Without released models, or with
    nothing to build, it does nothing.
    """
    if not overview.to_build or not any(_is_released(node) for node in builder.graph.nodes):
        return Preflight((), (), ())
    ended: list[Event] = []
    job = Job("preflight", payload=builder.experiment)
    with tempfile.TemporaryDirectory(prefix="cpt-residual-") as folder:
        log = Path(folder) / "log"
        run_jobs({job.name: job}, check_all, machine=Machine(1), log=log, on_event=ended.append)
        if ended[-1].error is not None:
            raise _with_output(ended[-1].error, log)
    return cast("Preflight", ended[-1].result)


def _with_output(error: CptResidualError, log: Path) -> CptResidualError:
    """Where `error` refers to the log, which is deleted, one that shows its last lines."""
    if not any(str(log) in problem for problem in error.problems):
        return error
    printed = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return WorkerError(
        f"the checks of the released models did not end: {error.what}",
        problems=printed[-_NUM_LINES_SHOWN:],
        remedy=f"Nothing was built. {MEMORY_HINT}: free some, then run the same command again.",
    )


def check_all(experiment: Experiment, report: Report) -> Preflight:
    """What the process of `preflight` runs."""
    del report
    builder = Builder.of(experiment)
    released, found = _Released(builder.graph, builder.store), _Found()
    checked = tuple(released.folders)
    for name in checked:
        if found.run(name, partial(check_model, released.folders[name], name)):
            del released.folders[name]  # what is made from it is not checked
    for planned in Overview.of(builder.graph, builder.store).to_build:
        if isinstance(planned.node.stage, Checked):
            for check in planned.node.stage.checks(released.folder_of):
                found.run(planned.name, check)
    return Preflight(checked, tuple(released.absent), found.faults)


def _is_released(node: Node) -> bool:
    return isinstance(node.stage, Source)


def missing_sources(overview: Overview) -> Overview:
    """The released models of the hub that are not in the store yet."""
    return Overview(
        tuple(
            planned
            for planned in overview.to_build
            if isinstance(planned.node.stage, Source) and planned.node.stage.needs_network
        )
    )


class _Released:
    """The released models of a graph. folders: of those that are here and sound, by node; absent:
    the nodes of those that are not here yet."""

    def __init__(self, graph: Graph, store: Store) -> None:
        self.folders: dict[str, Path] = {}
        self.absent: list[str] = []
        for node in graph.nodes:
            if isinstance(node.stage, Source):
                folder = node.stage.local_folder
                if folder is None and store.manifest(node) is not None:
                    folder = store.path_of(node)
                if folder is None:
                    self.absent.append(node.stage.node)
                else:
                    self.folders[node.stage.node] = folder

    def folder_of(self, stage: Stage) -> Path | None:
        while isinstance(stage, SameLayout):
            stage = stage.layout_of
        return self.folders.get(stage.node)


class _Found:
    """What the checks have found; each distinct check runs once."""

    def __init__(self) -> None:
        self._errors: dict[tuple[object, str], CptResidualError | None] = {}
        self._nodes: dict[str, dict[str, None]] = {}  # in order, by the text of the fault
        self._faults: dict[str, CptResidualError] = {}

    def run(self, node: str, check: Check) -> bool:
        """Whether there is a fault."""
        key = check.func, repr((check.args, check.keywords))
        if key not in self._errors:
            self._errors[key] = _error(check)
        error = self._errors[key]
        if error is not None:
            self._faults.setdefault(str(error), error)
            self._nodes.setdefault(str(error), {})[node] = None
        return error is not None

    @property
    def faults(self) -> tuple[tuple[CptResidualError, tuple[str, ...]], ...]:
        return tuple((error, tuple(self._nodes[text])) for text, error in self._faults.items())


def _error(check: Check) -> CptResidualError | None:
    try:
        check()
    except CptResidualError as error:
        return error
    return None


def _lines(error: CptResidualError, nodes: tuple[str, ...]) -> Iterator[str]:
    """One fault: who meets it and what it is, its own problems, and its remedy, indented."""
    shown = ", ".join(nodes[:_NUM_NODES_SHOWN])
    more = len(nodes) - _NUM_NODES_SHOWN
    yield f"{shown}{f' and {more} more' if more > 0 else ''}: {error.what}"
    for line in (*error.problems, *filter(None, [error.remedy])):
        yield f"  {line}"
