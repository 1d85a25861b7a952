"""Run one training: in this process, or as ranks under torchrun.

`run` is what the stage calls. `python -m cpt_residual.train.worker JOB.json` is one rank.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.stage import Metrics, MetricSink, ProgressReport
from cpt_residual.errors import (
    ArtifactError,
    CompatibilityError,
    ConfigError,
    CorruptArtifactError,
    CptResidualError,
    DiskSpaceError,
    LaunchError,
    WorkerError,
)
from cpt_residual.launch.endings import MEMORY_HINT, how_it_ended, signal_name
from cpt_residual.launch.environment import child_environment, rank_environment, rendezvous_of
from cpt_residual.launch.torchrun import (
    StopFlag,
    die_with_parent,
    killed_rank,
    last_lines,
    run_ranks,
    stop_requests,
    torchrun_command,
)
from cpt_residual.train.job import RankResult, TrainingInterruptedError, TrainJob

_ERROR = "error.json"
_EVENTS = "events.jsonl"
_JOB = "job.json"
_LOG = "ranks.log"
_RESULT = "result.json"
_NUM_LINES = 12

_KINDS: dict[str, type[CptResidualError]] = {
    kind.__name__: kind
    for kind in (
        ArtifactError,
        CompatibilityError,
        ConfigError,
        CorruptArtifactError,
        DiskSpaceError,
        LaunchError,
        TrainingInterruptedError,
        WorkerError,
    )
}
"""What a rank's error comes back as."""


def run(job: TrainJob, *, progress: ProgressReport, metrics: MetricSink | None) -> Metrics:
    """Train and write the model below `job.out`; returns the metrics of the manifest.

    Resumes from the last complete checkpoint below `job.checkpoints`, and the result is then the
    same, bit for bit on the CPU, as without the interruption. Raises CompatibilityError when the
    pack was not written with the start model's tokenizer, TrainingInterruptedError after a signal,
    WorkerError when a rank fails."""
    from cpt_residual.train.preflight import prepare

    job.scratch.mkdir(parents=True, exist_ok=True)
    facts, ready = prepare(job)
    reporter = _Direct(progress, metrics)
    with stop_requests() as flag:
        if ready.spawns_ranks:
            result = _run_ranks(ready, reporter, flag)
        else:
            from cpt_residual.train.isolation import isolated
            from cpt_residual.train.rank import train_rank

            with isolated(threads=ready.threads):
                result = train_rank(ready, reporter=reporter, flag=flag)
    lost = {} if result.lost_share is None else {"lost_share": result.lost_share}
    return facts | {"final_loss": result.final_loss} | lost


class _Direct:
    """Reports straight to the caller."""

    def __init__(self, progress: ProgressReport, metrics: MetricSink | None) -> None:
        self._progress = progress
        self._metrics = metrics

    def progress(self, done: int, total: int, unit: str, /) -> None:
        self._progress(done, total, unit)

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        if self._metrics is not None:
            self._metrics.log(values, tokens=tokens, step=step)


# --- the parent's side of ranks ------------------------------------------------------------------
def _run_ranks(job: TrainJob, reporter: _Direct, flag: StopFlag) -> RankResult:
    files = {name: job.scratch / name for name in (_ERROR, _EVENTS, _JOB, _LOG, _RESULT)}
    for path in files.values():
        path.unlink(missing_ok=True)
    job.write(files[_JOB])
    relay = _Relay(files[_EVENTS], reporter)
    code = run_ranks(
        torchrun_command(
            module="cpt_residual.train.worker",
            arguments=[str(files[_JOB])],
            num_processes=job.launch.num_processes,
            num_nodes=job.launch.num_nodes,
            rendezvous=rendezvous_of(job.launch.num_nodes),
        ),
        environment=child_environment(threads=job.threads),
        log=files[_LOG],
        on_poll=relay,
        flag=flag,
    )
    if files[_RESULT].exists():  # torchrun ends with 1 after SIGTERM, even when all is well
        return RankResult.model_validate_json(files[_RESULT].read_text())
    raise _failure(files[_ERROR], files[_LOG], code)


def _failure(error: Path, log: Path, code: int) -> CptResidualError:
    """Why there is no result. What a surviving rank raises when its peer is gone says nothing of
    the cause, so a rank that was killed comes before errors that no code of ours has raised."""
    fields: dict[str, Any] = json.loads(error.read_text()) if error.exists() else {}
    killed = killed_rank(log)
    echo = killed and killed[1] != signal.SIGABRT and fields.get("unexpected")
    if fields and not echo:
        return _KINDS[fields["kind"]](
            fields["what"], problems=fields["problems"], remedy=fields["remedy"]
        )
    if killed:
        rank, number = killed
        return WorkerError(
            f"rank {rank} of the training was killed by {signal_name(number)}",
            problems=[f"what the ranks printed: {log}"],
            remedy=f"Nothing was published. {MEMORY_HINT}: lower launch.micro_batch_rows, then run "
            "the same command again; it resumes from the last checkpoint.",
        )
    return WorkerError(
        f"the training ranks ended without a result: torchrun {how_it_ended(code)}",
        problems=last_lines(log),
        remedy=f"The whole output is in {log}. A rerun resumes from the last checkpoint.",
    )


class _Relay:
    """Passes on the events that the first rank appends to a file."""

    def __init__(self, path: Path, reporter: _Direct) -> None:
        self._path, self._reporter = path, reporter
        self._offset = 0

    def __call__(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            handle.seek(self._offset)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            self._pass_on(json.loads(line))

    def _pass_on(self, event: dict[str, Any]) -> None:
        if "values" in event:
            self._reporter.log(event["values"], tokens=event["tokens"], step=event["step"])
        else:
            self._reporter.progress(event["done"], event["total"], event["unit"])


def _write_error(path: Path, error: CptResidualError, *, unexpected: bool = False) -> None:
    kind = type(error).__name__
    fields: dict[str, JsonValue] = {
        "kind": kind if kind in _KINDS else "WorkerError",
        "what": error.what,
        "problems": list(error.problems),
        "remedy": error.remedy,
        "unexpected": unexpected,
    }
    if not path.exists():  # the first failure is the cause, what follows is its echo
        write_json_atomic(path, fields)


# --- one rank ------------------------------------------------------------------------------------
class _EventWriter:
    """Appends events for the parent; only the first rank has any."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def progress(self, done: int, total: int, unit: str, /) -> None:
        self._write({"done": done, "total": total, "unit": unit})

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        self._write({"values": dict(values), "tokens": tokens, "step": step})

    def _write(self, event: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(event) + "\n")


def _main(job_file: Path) -> int:
    """One rank under torchrun. The parent learns the outcome from files, not from exit codes."""
    die_with_parent()
    folder = job_file.parent
    try:
        result = _train(job_file)
    except TrainingInterruptedError as error:  # every rank is here: a clean end
        if rank_environment().is_first:
            _write_error(folder / _ERROR, error)
    except CptResidualError as error:
        _write_error(folder / _ERROR, error)
        return error.exit_code
    except Exception as error:
        # The outer edge of a rank: torchrun's own report says only that some rank failed.
        _write_error(folder / _ERROR, _unexpected(error), unexpected=True)
        raise
    else:
        if rank_environment().is_first:
            write_json_atomic(folder / _RESULT, result)
    from cpt_residual.train.group import leave_group

    leave_group()
    return 0


def _train(job_file: Path) -> RankResult:
    from cpt_residual.train.isolation import isolated
    from cpt_residual.train.rank import train_rank

    job = TrainJob.read(job_file)
    with stop_requests() as flag, isolated(threads=job.threads):
        return train_rank(job, reporter=_EventWriter(job_file.parent / _EVENTS), flag=flag)


def _unexpected(error: Exception) -> WorkerError:
    return WorkerError(
        f"rank {rank_environment().rank}: unexpected {type(error).__name__}: {error}",
        problems=traceback.format_exc().splitlines()[-_NUM_LINES:],
        remedy="A rerun resumes from the last checkpoint.",
    )


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
