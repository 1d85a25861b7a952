"""Open what a stage logs to: JSON lines always, W&B as the configuration asks."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_residual.config.schema import Tracking
from cpt_residual.core.hashing import plain
from cpt_residual.core.stage import Node
from cpt_residual.tracking.identity import RunIdentity
from cpt_residual.tracking.series import SeriesSink, series_path

if TYPE_CHECKING:
    from cpt_residual.tracking.wandb_sink import WandbSink

__all__ = ["Sinks", "check_tracking", "open_sinks", "track_report"]


class Sinks:
    """A `MetricSink` that writes to all open sinks."""

    def __init__(self, series: SeriesSink, wandb: WandbSink | None) -> None:
        self._series, self._wandb = series, wandb

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        """One row; the JSON line is on disk before W&B is asked."""
        self._series.log(values, tokens=tokens, step=step)
        if self._wandb is not None:
            self._wandb.log(values, tokens=tokens, step=step)

    def summarise(self, metrics: Mapping[str, object]) -> None:
        """Final values of the stage (its manifest holds them anyway)."""
        if self._wandb is not None:
            self._wandb.summarise(metrics)


def check_tracking(tracking: Tracking) -> None:
    """Raise LaunchError when W&B cannot be used as asked; to be called before any work."""
    if tracking.wandb == "online":
        from cpt_residual.tracking.wandb_sink import require_credentials

        require_credentials()


@contextmanager
def open_sinks(
    tracking: Tracking, *, experiment: str, seed: int, node: Node, run_dir: Path
) -> Generator[Sinks]:
    """Sinks of one stage: `run_dir/series/<node>.jsonl`, and one W&B run below `run_dir/wandb`.

    Only one process per stage may open them (rank 0). Raises LaunchError when `online` was asked
    for and there is no API key; a W&B that fails later costs a warning, not the stage.
    """
    stage = node.stage
    identity = RunIdentity(experiment, seed, stage.name, stage.node, node.fingerprint)
    config = {
        "recipe": plain(stage.recipe()),
        "node": stage.node,
        "fingerprint": node.fingerprint,
        "inputs": dict(node.inputs),
        "experiment": experiment,
        "seed": seed,
    }
    wandb = _open_wandb(tracking, identity, config, run_dir)
    with SeriesSink(series_path(run_dir, stage.node)) as series, _finished(wandb):
        yield Sinks(series, wandb)


def track_report(
    tracking: Tracking,
    *,
    experiment: str,
    seed: int,
    fingerprint: str,
    run_dir: Path,
    report_dir: Path,
) -> None:
    """The summary run of an experiment: comparison table and figures. Nothing when W&B is off."""
    identity = RunIdentity(experiment, seed, "summary", "summary", fingerprint)
    config = {"experiment": experiment, "seed": seed, "fingerprint": fingerprint}
    wandb = _open_wandb(tracking, identity, config, run_dir)
    if wandb is not None:
        from cpt_residual.tracking.wandb_sink import write_summary_run

        with _finished(wandb):
            write_summary_run(wandb, report_dir)


def _open_wandb(
    tracking: Tracking, identity: RunIdentity, config: Mapping[str, object], run_dir: Path
) -> WandbSink | None:
    if tracking.wandb == "off":
        return None
    from cpt_residual.tracking.wandb_sink import WandbSink

    return WandbSink.open(
        identity,
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        config=config,
        folder=run_dir,
    )


@contextmanager
def _finished(wandb: WandbSink | None) -> Generator[None]:
    """End the W&B run however the stage ends; a failed stage ends as failed."""
    if wandb is None:
        yield
        return
    try:
        yield
    except BaseException:
        wandb.finish(failed=True)
        raise
    wandb.finish()
