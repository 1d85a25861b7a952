"""Run one experiment, from a validated configuration to its report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cpt_residual.config.schema import Experiment
from cpt_residual.core.build import BuildOutcome
from cpt_residual.core.disk import FullDiskReport, check_free_space, format_bytes
from cpt_residual.core.files import append_line
from cpt_residual.core.measure import usable_cores
from cpt_residual.core.run_record import new_run_dir
from cpt_residual.core.store import Store
from cpt_residual.errors import ConfigError, CptResidualError, DiskSpaceError
from cpt_residual.launch.console import BuildConsole, duration, paragraph
from cpt_residual.launch.environment import set_maths_defaults
from cpt_residual.launch.machine import local_machine
from cpt_residual.launch.pool import Event, run_jobs
from cpt_residual.launch.schedule import Job, Machine, wall_seconds
from cpt_residual.stages.closing import begin, end, say_uploads
from cpt_residual.stages.execute import Builder, BuildRequest, execute
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.preflight import missing_sources, preflight
from cpt_residual.stages.registry import REPORT_NODE
from cpt_residual.tracking.sinks import check_tracking

WORKERS_LOG = "workers.log"
"""What libraries printed while stages were built; below the folder of the run."""


@dataclass(frozen=True)
class Finished:
    """How a run ended. `report_dir` is None when the report could not be built; `errors` says why.

    `overrides`: what tells the run from the others of a sweep, e.g. `seed=1`; empty outside one."""

    experiment: Experiment
    report_dir: Path | None
    errors: tuple[CptResidualError, ...] = ()
    overrides: str = ""

    @property
    def complete(self) -> bool:
        return self.report_dir is not None

    @property
    def name(self) -> str:
        """`tiny (seed=1 launch.device=cpu)`."""
        return f"{self.experiment.name} ({self.overrides or f'seed {self.experiment.seed}'})"


def run_experiment(experiment: Experiment, console: Console, *, overrides: str = "") -> Finished:
    """Build everything that is missing and show the comparison.

    Raises `CptResidualError` before any work: for stale or corrupt artifacts (all in one error),
    for GPUs that are not there, for too little disk, and, once released models have been
    downloaded, for whatever of them would fail a later stage (see `preflight`). What another
    process builds is waited for and then used. A stage that fails stops only what depends on it;
    the result then is incomplete.
    """
    builder = Builder.of(experiment)
    overview = Overview.of(builder.graph, builder.store)
    require_store(builder.store, overview)
    tracked = check_tracking(experiment.tracking)
    if tracked:
        paragraph(console, tracked)
    machine = machine_for(builder, overview)
    with FullDiskReport(Path(experiment.paths.root), 0):
        started = time.monotonic()
        models, run_dir = missing_sources(overview), None
        if models.stages:
            run_dir = new_run(builder)
            errors = build_all(builder, models, run_dir, machine, console)
            if errors:
                tell_unfinished(errors, run_dir, console)
                return Finished(experiment, None, tuple(errors.values()), overrides)
            overview = Overview.of(builder.graph, builder.store)
        check_released(builder, overview, console)
        run_dir = run_dir or new_run(builder)
        errors = build_all(builder, overview, run_dir, machine, console)
        if builder.store.status(builder.graph, REPORT_NODE).state != "ready":
            tell_unfinished(errors, run_dir, console)
            say_uploads(run_dir, console)
            return Finished(experiment, None, tuple(errors.values()), overrides)
        report_dir = end(builder, run_dir, console, seconds=time.monotonic() - started)
        return Finished(experiment, report_dir, overrides=overrides)


def require_store(store: Store, overview: Overview) -> None:
    """Raises where `overview` cannot be built: unusable artifacts, no right to write, no room."""
    store.require_usable((stage.node, stage.status) for stage in overview.stages)
    _require_writable(store.root)
    check_free_space(store.root, overview.disk_bytes_needed)


def machine_for(builder: Builder, overview: Overview) -> Machine:
    """What is here for the missing stages. LaunchError when it does not suffice for one of them."""
    wanted = {stage.name: stage.resources for stage in overview.to_build}
    return local_machine(builder.experiment.launch, wanted)


def build_all(
    builder: Builder, overview: Overview, run_dir: Path, machine: Machine, console: Console
) -> Mapping[str, CptResidualError]:
    """Build what `overview` misses, with bars and a log; what went wrong, by stage."""
    _announce(builder, overview, machine, console)
    with BuildConsole(console, total_stages=len(overview.stages)) as bars:
        session = _Session(builder, run_dir, bars)
        session.run(overview, machine)
    return session.errors


def check_released(builder: Builder, overview: Overview, console: Console) -> None:
    """Raises CompatibilityError with every fault of the released models that would stop a stage of
    `overview`; says what was checked."""
    found = preflight(builder, overview)
    found.require_sound()
    if found.checked:
        paragraph(console, f"checked: {found}")


def tell_unfinished(
    errors: Mapping[str, CptResidualError], run_dir: Path, console: Console
) -> None:
    """Some stages failed, perhaps long before the end: which, what to do, where their output is."""
    kept = "What was built is kept; the same command goes on from there."
    paragraph(console, f"not finished: see the failures above. {kept}", style="bold red")
    for node, error in errors.items():
        paragraph(console, f"failed: {node}: {error.what}", style="red")
    log = run_dir / WORKERS_LOG
    if log.is_file() and log.stat().st_size:
        console.print(f"what the stages printed: {log}", markup=False, soft_wrap=True)


def _require_writable(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise ConfigError(
            f"nothing can be written below paths.root: {store}: {error.strerror}",
            remedy="Nothing was run. Choose another folder: paths.root=DIR, or fix its rights.",
        ) from error


def new_run(builder: Builder) -> Path:
    """A folder for a run: its plan, the state of the code, later its logs."""
    experiment = builder.experiment
    root = Path(experiment.paths.root)
    run_dir = new_run_dir(root / "runs", experiment.name, builder.graph.fingerprint)
    begin(builder, run_dir)
    return run_dir


def _announce(builder: Builder, overview: Overview, machine: Machine, console: Console) -> None:
    experiment = builder.experiment
    paragraph(console, f"{experiment.name} (seed {experiment.seed}): {experiment.question}")
    missing = len(overview.to_build)
    text = f"{len(overview.stages)} stages, {len(overview.reused)} ready, {missing} to build"
    if missing:
        seconds = wall_seconds(overview.timetable(machine).values())
        text += (
            f": about {duration(seconds)} on {machine}, "
            f"{format_bytes(overview.disk_bytes_needed)} of disk"
        )
    if overview.busy:
        text += f"; {len(overview.busy)} of these by another process right now"
    paragraph(console, text)
    console.print(f"store: {builder.store.root}", markup=False)
    if machine.cores > usable_cores():
        paragraph(
            console,
            f"launch.cores={machine.cores}, but this machine has {usable_cores()}: stages will "
            "slow each other down",
            style="yellow",
        )


class _Session:
    """Feeds the pool and turns its events into lines on the screen and in `log.jsonl`."""

    def __init__(self, builder: Builder, run_dir: Path, bars: BuildConsole) -> None:
        self._builder, self._run_dir, self._bars = builder, run_dir, bars
        self.errors: dict[str, CptResidualError] = {}

    def run(self, overview: Overview, machine: Machine) -> None:
        for stage in overview.reused:
            self._bars.skipped(stage.name, stage.status.reason)
            self._log("skip", stage.name, reason=stage.status.reason)
        jobs = {name: self._with_work(job) for name, job in overview.jobs().items()}
        log = self._run_dir / WORKERS_LOG
        if jobs:
            set_maths_defaults()
            run_jobs(
                jobs,
                execute,
                machine=machine,
                log=log,
                on_event=self._on_event,
                holder=self._holder,
            )

    def _holder(self, job: Job) -> str | None:
        return self._builder.store.holder(self._builder.graph[job.name])

    def _with_work(self, job: Job) -> Job:
        request = BuildRequest(self._builder.experiment, job.name, self._run_dir)
        return replace(job, payload=request)

    def _on_event(self, event: Event) -> None:
        match event.kind:
            case "start":
                self._bars.started(event.job)
                self._log("start", event.job)
            case "progress":
                self._bars.progressed(event.job, event.done, event.total, event.unit)
            case "done":
                self._ended(event.job, event.result)
            case "failed":
                assert event.error is not None
                self._failed(event.job, event.error)
            case "waiting":
                self._bars.waiting(event.job, f"built by {event.holder}")
                self._log("waiting", event.job, holder=event.holder)
            case "blocked":
                self._bars.blocked(event.job)
                self._log("blocked", event.job)

    def _ended(self, node: str, outcome: BuildOutcome) -> None:
        if outcome.skipped:  # another process was faster
            self._bars.reused(node, outcome.reason)
            self._log("skip", node, reason=outcome.reason)
            return
        note = f"{duration(outcome.seconds):>10}  content {outcome.ref.content_hash[:8]}"
        self._bars.finished(node, note)
        self._log("done", node, seconds=outcome.seconds, content_hash=outcome.ref.content_hash)

    def _failed(self, node: str, error: CptResidualError) -> None:
        told = any(isinstance(known, DiskSpaceError) for known in self.errors.values())
        brief = told and isinstance(error, DiskSpaceError)  # the same disk is full for all
        text = f"{error.what} (as above)" if brief else str(error)
        self.errors[node] = error
        self._bars.failed(node, f"{type(error).__name__}: {text}")
        self._log("failed", node, error=str(error))

    def _log(self, event: str, node: str, **facts: object) -> None:
        """Best effort: a disk that is full is told by the stage that meets it."""
        row = {"time": time.time(), "event": event, "node": node, **facts}
        append_line(self._run_dir / "log.jsonl", json.dumps(row))
