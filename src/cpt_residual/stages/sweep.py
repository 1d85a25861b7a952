"""Summary table over the seeds of a multirun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cpt_residual.core.hashing import text_sha256
from cpt_residual.core.run_record import new_run_dir
from cpt_residual.launch.console import paragraph
from cpt_residual.stages.session import Finished


def report_sweep(finished: Sequence[Finished], console: Console) -> list[Path]:
    """Aggregate the runs of each experiment that differ by seed; name what did not finish.

    Runs that differ in anything else are listed with their own reports and not averaged.
    Returns the folders of the final reports.
    """
    groups: dict[str, list[Finished]] = {}
    for result in finished:
        if not result.complete:
            paragraph(console, f"not finished: {result.name}", style="bold red")
        groups.setdefault(_all_but_seed(result), []).append(result)
    reports = (_final_report(results, console) for results in groups.values())
    return [report for report in reports if report is not None]


def differing(sweep: Sequence[Sequence[str]]) -> list[str]:
    """What tells each run of a sweep from the others: its overrides that not all of them share."""
    shared = set(sweep[0]).intersection(*sweep) if len(sweep) > 1 else set(sweep[0])
    return [" ".join(part for part in run if part not in shared) for run in sweep]


def heading(text: str, console: Console) -> None:
    """A line of the sweep between two runs. The text is never cut."""
    rule = "─" * max(2, min(console.width, 100) - len(text) - 4)
    console.print(f"── {text} {rule}", markup=False, soft_wrap=True, style="bold")


def _final_report(results: Sequence[Finished], console: Console) -> Path | None:
    folders = [result.report_dir for result in results if result.report_dir is not None]
    if not folders:
        return None
    folder = _aggregate(results, folders, console) if len(results) > 1 else folders[0]
    console.print(f"report: {folder / 'report.md'}", markup=False, soft_wrap=True)
    return folder


def _all_but_seed(result: Finished) -> str:
    """One key for runs that differ by seed only."""
    return result.experiment.model_dump_json(exclude={"seed"})


def _aggregate(results: Sequence[Finished], folders: Sequence[Path], console: Console) -> Path:
    from cpt_residual.report.seeds import write_seed_report

    experiment = results[0].experiment
    seeds = ",".join(str(result.experiment.seed) for result in results)
    out = new_run_dir(
        Path(experiment.paths.root) / "runs", f"{experiment.name}-seeds", text_sha256(seeds)
    )
    unfinished = [result.experiment.seed for result in results if not result.complete]
    report = write_seed_report(folders, out / "report", unfinished=unfinished)
    heading(f"{experiment.name} over seeds {seeds}", console)
    console.print(report.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    return report.parent
