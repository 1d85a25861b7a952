"""One run of Weights & Biases: the only user of `wandb` for logging, and only when it is asked for.

Rules that make live, resumed and later synchronised runs agree: a deterministic id, an explicit
step, and the x-axis `tokens` in every row. An online run is resumed (`resume="allow"`) and is sent
the steps that the server lacks. `wandb sync` cannot do that: it appends a run to what the server
has, with doubled or shifted steps. So an offline run holds all steps from the first one, and takes
another id where an earlier attempt has used its own. Nothing of the environment, the machine, the
code or the console is sent.

Every call goes through a `Boundary`: W&B that fails never stops a training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpt_residual.core.hashing import text_sha256
from cpt_residual.launch.environment import without_wandb_service
from cpt_residual.tracking.boundary import Boundary
from cpt_residual.tracking.destination import Destination
from cpt_residual.tracking.outcome import Outcome

_CALL_SECONDS = 30.0
_GRACE_SECONDS = 30.0  # what W&B's own time limits leave out: imports, processes, files
_FLUSH_SECONDS = 0.2  # what a kill can lose of the offline copy
_X_AXIS = "tokens"
_DELETED = "previously created and deleted"


@dataclass(frozen=True)
class RunIdentity:
    """One stage of one experiment. The fingerprint makes another recipe another run; the node
    keeps two stages that share one artifact apart."""

    experiment: str
    seed: int
    stage: str
    node: str
    fingerprint: str

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits; deterministic, so that a resumed stage continues its run."""
        return self._id()

    @property
    def other_ids(self) -> tuple[str, ...]:
        """What takes the place of `run_id` on a server where that run was deleted: W&B never takes
        such an id again."""
        return (self._id("2"), self._id("3"))

    def attempt_id(self, attempt: int) -> str:
        """The id of an attempt that does not go on with the earlier ones; `run_id` for 0."""
        return self._id(f"attempt {attempt}") if attempt else self.run_id

    def _id(self, *more: str) -> str:
        text = "\n".join((self.experiment, str(self.seed), self.node, self.fingerprint, *more))
        return text_sha256(text)[:16]

    @property
    def group(self) -> str:
        return f"{self.experiment}-seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.node} seed {self.seed}"


@dataclass(frozen=True)
class SummaryTable:
    """The scores of an experiment, one per row, and its figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]
    figures: Sequence[Path] = ()


class WandbSink:
    """One W&B run. After a failure of W&B the sink stays usable and does nothing; `finish` says
    how it went."""

    def __init__(
        self, identity: RunIdentity, destination: Destination, run_dir: Path, run_id: str
    ) -> None:
        self._identity, self._destination, self._run_id = identity, destination, run_id
        self._run_dir = run_dir
        self._boundary = Boundary()
        self._run: Any = None
        self._folder = self._log = ""
        self._first_step = 0

    @classmethod
    def open(
        cls,
        identity: RunIdentity,
        destination: Destination,
        *,
        config: Mapping[str, object],
        run_dir: Path,
    ) -> WandbSink:
        """Start or resume the run; its files go to `wandb` below the destination's folder or
        `run_dir`. The next id is tried where the run was deleted from the server."""
        placed = replace(destination, folder=destination.folder or run_dir)
        sink = cls(identity, placed, run_dir, identity.run_id)
        sink._start(config)
        for run_id in identity.other_ids:
            if _DELETED not in (sink.failure or ""):
                break
            Boundary.reset()
            sink = cls(identity, placed, run_dir, run_id)
            sink._start(config)
        return sink

    @property
    def failure(self) -> str | None:
        """Why W&B has not got the run, None as far as is known."""
        return self._boundary.failure

    def again_offline(self, *, config: Mapping[str, object]) -> WandbSink:
        """A new offline run, for what did not get through."""
        offline = replace(self._destination, mode="offline")
        sink = WandbSink(self._identity, offline, self._run_dir, self._identity.run_id)
        sink._start(config)
        return sink

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        """One row. After an online resume, steps the server has already are not sent again."""
        if step >= self._first_step:
            self.log_objects(lambda: {**values, _X_AXIS: tokens}, step=step)

    def log_objects(self, row: Callable[[], Mapping[str, object]], *, step: int) -> None:
        """A row of numbers, tables or images; at once, where W&B would hold the last row back."""
        self._call("log", lambda: self._run.log(dict(row()), step=step, commit=True))

    def summarise(self, values: Mapping[str, object]) -> None:
        """Final values, shown in the run table."""
        self._call("summary", lambda: self._run.summary.update(dict(values)))

    def finish(self, *, failed: bool = False) -> Outcome:
        """End the run, waiting for uploads as long as the destination says, and end W&B's
        service process."""
        seconds = self._destination.finish_seconds + _GRACE_SECONDS
        self._call("finish", lambda: self._run.finish(exit_code=int(failed)), seconds=seconds)
        problem = self._boundary.call(
            "log of the upload", lambda: _upload_problem(Path(self._log)), seconds=_CALL_SECONDS
        )
        if problem:
            self._boundary.fail(f"upload: {problem}")
        self._boundary.reset()
        offline = self._destination.mode == "offline"
        return Outcome(
            run_id=self._run_id,
            name=self._identity.name,
            node=self._identity.node,
            failure=self.failure or "",
            folder=str(Path(self._folder).absolute()) if offline and self._folder else "",
        )

    def _call(self, what: str, act: Callable[[], object], seconds: float = _CALL_SECONDS) -> None:
        self._boundary.call(what, act, seconds=seconds)

    def _start(self, config: Mapping[str, object]) -> None:
        seconds = self._destination.init_seconds + _GRACE_SECONDS
        self._call("start", lambda: self._init(config), seconds=seconds)

    def _init(self, config: Mapping[str, object]) -> None:
        import wandb

        destination, identity = self._destination, self._identity
        online = destination.mode == "online"
        if not online:
            self._run_id = _unused_id(identity, Path(destination.folder or "."), self._run_dir)
        Path(destination.folder or ".").mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=destination.init_seconds,
            finish_timeout=destination.finish_seconds,
            finish_timeout_raises=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
        )
        with without_wandb_service():
            run: Any = wandb.init(
                entity=destination.entity,
                project=destination.project,
                id=self._run_id,
                name=identity.name,
                group=identity.group,
                job_type=identity.stage,
                dir=str(destination.folder),
                mode=destination.mode,
                resume="allow" if online else None,
                reinit="create_new",
                config=dict(config),
                settings=settings,
            )
        self._run, self._folder = run, run.settings.sync_dir
        self._log = run.settings.log_internal
        self._first_step = int(run.step)
        run.define_metric(_X_AXIS)
        run.define_metric("*", step_metric=_X_AXIS)


def _unused_id(identity: RunIdentity, folder: Path, run_dir: Path) -> str:
    """The first id of the run that no folder of an earlier attempt has; where W&B's files are in
    the folder of the run, also in the folders of other runs beside it."""
    places = folder.parent.glob("*/wandb") if folder == run_dir else folder.glob("wandb")
    used, attempt = [*places], 0
    while any(
        found for place in used for found in place.glob(f"*run-*-{identity.attempt_id(attempt)}")
    ):
        attempt += 1
    return identity.attempt_id(attempt)


def write_summary_run(sink: WandbSink, summary: SummaryTable) -> None:
    """The table of all scores and the figures of a report, as one run."""
    sink.log_objects(lambda: _media(summary), step=0)


def _media(summary: SummaryTable) -> dict[str, object]:
    import wandb

    columns: list[Any] = [*summary.columns]
    cells: list[Any] = [[*row] for row in summary.rows]
    media: dict[str, object] = {"results": wandb.Table(columns=columns, data=cells)}
    for path in summary.figures:
        media[f"figures/{path.stem}"] = wandb.Image(str(path))
    return media


def _upload_problem(log: Path) -> str | None:
    """The last error in what W&B's service process says of a run: an upload that the server has
    refused is nowhere else to be seen."""
    if not log.is_file():
        return None
    problem = None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"level":"ERROR' in line:
            try:
                entry: dict[str, object] = json.loads(line)
            except ValueError:  # torn: the service process may have been killed
                continue
            problem = " ".join(str(entry[name]) for name in ("msg", "error") if name in entry)
    return problem.splitlines()[0] if problem else None
