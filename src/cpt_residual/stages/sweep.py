"""After a multirun: one table per experiment over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cpt_residual.core.hashing import text_sha256
from cpt_residual.core.run_record import new_run_dir
from cpt_residual.stages.session import Finished


def report_sweep(finished: Sequence[Finished], console: Console) -> list[Path]:
    """Aggregate the runs of each experiment that differ by seed; name what did not finish.

    Runs that differ in anything else are listed with their own reports and not averaged.
    Returns the folders of the final reports.
    """
    for result in finished:
        if not result.complete:
            console.print(f"not finished: {result.run_dir}", style="bold red")
    groups: dict[str, list[Finished]] = {}
    for result in finished:
        if result.complete:
            groups.setdefault(_all_but_seed(result), []).append(result)
    return [_final_report(results, console) for results in groups.values()]


def _final_report(results: Sequence[Finished], console: Console) -> Path:
    folders = [result.report_dir for result in results if result.report_dir is not None]
    folder = _aggregate(results, folders, console) if len(results) > 1 else folders[0]
    console.print(f"report: {folder / 'report.md'}")
    return folder


def _all_but_seed(result: Finished) -> str:
    """One key for runs that differ by seed only."""
    return result.experiment.model_dump_json(exclude={"seed"})


def _aggregate(results: Sequence[Finished], folders: Sequence[Path], console: Console) -> Path:
    from cpt_residual.evaluation.statistics import compare_paired
    from cpt_residual.report.seeds import write_seed_report

    def paired_test(
        first: Sequence[float], second: Sequence[float], /
    ) -> tuple[float, float, float, float]:
        test = compare_paired(first, second)
        return test.difference, test.low, test.high, test.p_value

    experiment = results[0].experiment
    seeds = ",".join(str(result.experiment.seed) for result in results)
    out = new_run_dir(
        Path(experiment.paths.root) / "runs", f"{experiment.name}-seeds", text_sha256(seeds)
    )
    report = write_seed_report(folders, out / "report", paired_test=paired_test)
    console.rule(f"{experiment.name} over seeds {seeds}")
    console.print(report.read_text(encoding="utf-8"), markup=False)
    return report.parent
