"""Weights & Biases: the only importer of `wandb`, and only when it is asked for.

Rules that make live, resumed and later synchronised runs agree: deterministic id, `resume="allow"`,
an explicit step, and the x-axis `tokens` in every row. Nothing of the environment, the machine, the
code or the console is sent. A network failure never stops a training: it is told once, as a
log warning, and the JSON lines hold everything.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from cpt_residual.errors import LaunchError
from cpt_residual.tracking.identity import RunIdentity

__all__ = ["WandbSink", "require_credentials", "write_summary_run"]

Mode = Literal["online", "offline"]
_INIT_TIMEOUT_SECONDS = 30.0
_FINISH_TIMEOUT_SECONDS = 60.0
_FLUSH_SECONDS = 0.2  # what a kill can lose of the offline copy
_X_AXIS = "tokens"
_NUMBERS = frozenset({"value", "stderr", "n"})
_LOG = logging.getLogger(__name__)


def require_credentials() -> None:
    """Raise LaunchError when `online` was asked for and no API key can be found. Sends nothing."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = cast("Any", wandb_setup.singleton()).settings.base_url
    found = cast("Any", wbauth).authenticate_session(
        host=host, source="cpt_residual", prompt=False, update_session=False
    )
    if found is None:
        raise LaunchError(
            "tracking.wandb=online, but no W&B API key was found",
            problems=[f"looked in WANDB_API_KEY and in ~/.netrc for {host}"],
            remedy="Nothing was started. Run `wandb login`, set WANDB_API_KEY, or use "
            "tracking.wandb=offline (upload later with `wandb sync`) or tracking.wandb=off.",
        )


class WandbSink:
    """One W&B run. After a failure of W&B the sink stays usable and does nothing."""

    def __init__(self, run: Any, identity: RunIdentity) -> None:
        self._run, self._identity = run, identity

    @classmethod
    def open(
        cls,
        identity: RunIdentity,
        *,
        mode: Mode,
        project: str,
        entity: str | None,
        config: Mapping[str, object],
        folder: Path,
    ) -> WandbSink:
        """Start or resume the run; its files go to `folder/wandb`.

        Raises LaunchError without an API key. When the server cannot be reached the run goes on
        offline, after a warning that says how to upload it.
        """
        import wandb

        if mode == "online":
            require_credentials()
        folder.mkdir(parents=True, exist_ok=True)
        attempts: tuple[Mode, ...] = ("online", "offline") if mode == "online" else ("offline",)
        for attempt in attempts:
            try:
                run = _init(identity, attempt, project, entity, config, folder)
            except _failures() as error:
                wandb.teardown()  # else the id stays taken by the attempt that failed
                hint = (
                    f"going on offline; upload later with `wandb sync {folder / 'wandb'}/offline-*`"
                    if attempt == "online"
                    else "going on without W&B; the JSON lines hold everything"
                )
                _warn(f"W&B run {identity.name} did not start ({_brief(error)}): {hint}")
                continue
            run.define_metric(_X_AXIS)
            run.define_metric("*", step_metric=_X_AXIS)
            return cls(run, identity)
        return cls(None, identity)

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        """One row. After an online resume, steps the server has already are not sent again."""
        if self._run is None or step < int(self._run.step):
            return
        self.log_objects({**values, _X_AXIS: tokens}, step=step)

    def log_objects(self, row: Mapping[str, object], *, step: int) -> None:
        """A row of numbers, tables or images; at once, where W&B would hold the last row back."""
        self._try("log", lambda run: run.log(dict(row), step=step, commit=True))

    def summarise(self, values: Mapping[str, object]) -> None:
        """Final values, shown in the run table."""
        self._try("summary", lambda run: run.summary.update(dict(values)))

    def finish(self, *, failed: bool = False) -> None:
        """End the run; waits at most a minute for uploads, the rest stays for `wandb sync`."""
        self._try("finish", lambda run: run.finish(exit_code=1 if failed else 0))
        self._run = None

    def _try(self, what: str, act: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            act(self._run)
        except _failures() as error:
            self._run = None
            _warn(
                f"W&B {what} of {self._identity.name} failed ({_brief(error)}): going on without "
                "W&B; the JSON lines hold everything"
            )


def write_summary_run(sink: WandbSink, report_dir: Path) -> None:
    """The comparison table (`results.csv`) and the figures of a report, as one run."""
    import wandb

    with (report_dir / "results.csv").open(encoding="utf-8", newline="") as lines:
        header, *rows = list(csv.reader(lines))
    cells: list[Any] = [
        [
            _number(text) if name in _NUMBERS else text
            for name, text in zip(header, row, strict=True)
        ]
        for row in rows
    ]
    columns: list[Any] = [*header]
    media: dict[str, object] = {"results": wandb.Table(columns=columns, data=cells)}
    for path in sorted((report_dir / "figures").glob("*.png")):
        media[f"figures/{path.stem}"] = wandb.Image(str(path))
    sink.log_objects(media, step=0)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _init(
    identity: RunIdentity,
    mode: Mode,
    project: str,
    entity: str | None,
    config: Mapping[str, object],
    folder: Path,
) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        init_timeout=_INIT_TIMEOUT_SECONDS,
        finish_timeout=_FINISH_TIMEOUT_SECONDS,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
    )
    return wandb.init(
        entity=entity,
        project=project,
        id=identity.run_id,
        name=identity.name,
        group=identity.group,
        job_type=identity.stage,
        dir=str(folder),
        mode=mode,
        resume="allow",
        reinit="create_new",
        config=dict(config),
        settings=settings,
    )


def _failures() -> tuple[type[Exception], ...]:
    """What W&B raises when its server or its service process fails."""
    import wandb
    from wandb.sdk.lib.service import service_token  # pyright: ignore[reportMissingTypeStubs]
    from wandb.sdk.mailbox.mailbox import MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError, ServerResponseError

    return (
        wandb.Error,
        OSError,
        TimeoutError,
        HandleAbandonedError,
        MailboxClosedError,
        ServerResponseError,
        service_token.WandbServiceConnectionError,
    )


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _warn(text: str) -> None:
    _LOG.warning("%s", text)
