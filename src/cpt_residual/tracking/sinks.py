"""Open what a stage logs to: JSON lines always, W&B as configuration and environment ask."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_residual.config.schema import Tracking
from cpt_residual.core.hashing import plain
from cpt_residual.core.stage import Node
from cpt_residual.launch.environment import wandb_variables
from cpt_residual.tracking.destination import (
    Destination,
    destination_of,
    require_wandb,
    why_off,
)
from cpt_residual.tracking.outcome import record
from cpt_residual.tracking.series import SeriesSink, read_series, series_path
from cpt_residual.tracking.wandb_sink import RunIdentity, SummaryTable, WandbSink, write_summary_run


class Sinks:
    """A `MetricSink` that writes to all open sinks."""

    def __init__(self, series: SeriesSink) -> None:
        self._series = series
        self.wandb: WandbSink | None = None
        self._summary: Mapping[str, object] = {}

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        """One row; the JSON line is on disk before W&B is asked."""
        self._series.log(values, tokens=tokens, step=step)
        if self.wandb is not None:
            self.wandb.log(values, tokens=tokens, step=step)

    def summarise(self, metrics: Mapping[str, object]) -> None:
        """Final values of the stage (its manifest holds them anyway)."""
        self._summary = metrics
        if self.wandb is not None:
            self.wandb.summarise(metrics)

    def write_again(self, wandb: WandbSink) -> None:
        """All that was logged, from the JSON lines."""
        for row in read_series(self._series.path):
            values = {name: row[name] for name in row if name not in ("step", "tokens")}
            wandb.log(values, tokens=int(row["tokens"]), step=int(row["step"]))
        wandb.summarise(self._summary)


def check_tracking(tracking: Tracking) -> str:
    """Where W&B runs will go, in one line; empty when W&B was never mentioned. Raises LaunchError
    when W&B cannot be used as asked; to be called before any work."""
    variables = wandb_variables()
    destination = destination_of(tracking, variables)
    if destination is not None:
        require_wandb(destination, variables)
        return destination.describe()
    why = why_off(tracking, variables)
    return "" if why == "tracking.wandb=off" else f"W&B is off: {why}"


@contextmanager
def open_sinks(
    tracking: Tracking, *, experiment: str, seed: int, node: Node, run_dir: Path
) -> Generator[Sinks]:
    """Sinks of one stage: `run_dir/series/<node>.jsonl`, and one W&B run below `run_dir/wandb`.

    Only one process per stage may open them (rank 0). Raises LaunchError for variables that
    contradict `tracking`; a W&B that fails never costs the stage.
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
    destination = destination_of(tracking, wandb_variables())
    with closing(SeriesSink(series_path(run_dir, stage.node))) as series:
        sinks = Sinks(series)
        if destination is None:
            yield sinks
            return
        tracked = _Tracked(identity, destination, config, run_dir)
        with tracked.run(sinks.write_again) as sinks.wandb:
            yield sinks


def track_report(
    tracking: Tracking,
    *,
    experiment: str,
    seed: int,
    fingerprint: str,
    run_dir: Path,
    summary: SummaryTable,
) -> None:
    """The summary run of an experiment: all scores and figures. Nothing when W&B is off."""
    destination = destination_of(tracking, wandb_variables())
    if destination is None:
        return
    identity = RunIdentity(experiment, seed, "summary", "summary", fingerprint)
    config = {"experiment": experiment, "seed": seed, "fingerprint": fingerprint}
    tracked = _Tracked(identity, destination, config, run_dir)
    with tracked.run(lambda wandb: write_summary_run(wandb, summary)) as wandb:
        write_summary_run(wandb, summary)


@dataclass(frozen=True)
class _Tracked:
    """One W&B run from its start to the record of how it went."""

    identity: RunIdentity
    destination: Destination
    config: Mapping[str, object]
    run_dir: Path

    @contextmanager
    def run(self, write_again: Callable[[WandbSink], None]) -> Generator[WandbSink]:
        """The run, ended however the stage ends; a failed stage ends as failed. What W&B did not
        get is written once more, offline, for `wandb sync`."""
        wandb = WandbSink.open(
            self.identity, self.destination, config=self.config, run_dir=self.run_dir
        )
        failed = True
        try:
            yield wandb
            failed = False
        finally:
            outcome = wandb.finish(failed=failed)
            if outcome.failure:
                copy = wandb.again_offline(config=self.config)
                write_again(copy)
                written = copy.finish(failed=failed)
                folder = "" if written.failure else written.folder
                outcome = replace(outcome, folder=folder)
            record(self.run_dir, outcome)
