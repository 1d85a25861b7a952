"""Start and end of a run: its record, and the comparison, verdict, times and figures it shows."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.console import Console

from cpt_residual.core.artifact import MANIFEST, RECEIPT
from cpt_residual.core.disk import format_bytes
from cpt_residual.core.files import copy_files, write_json_atomic
from cpt_residual.core.run_record import git_state, library_versions
from cpt_residual.core.store import VERIFIED_FOLDER
from cpt_residual.launch.console import duration, paragraph
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.frozen import FrozenPlan
from cpt_residual.stages.registry import REPORT_NODE
from cpt_residual.tracking.outcome import upload_lines
from cpt_residual.tracking.sinks import track_report
from cpt_residual.tracking.wandb_sink import SummaryTable

if TYPE_CHECKING:
    from cpt_residual.results.document import Results

ENVIRONMENT_FILE = "environment.json"

TIMES_FILE = "times.json"
"""Measured times and peak memory of every stage. Beside the report, not part of its artifact:
they differ from machine to machine while the report is the same to the byte."""


def begin(builder: Builder, run_dir: Path) -> None:
    """What every run folder holds from its start: the plan, which keeps what is built from being
    collected as garbage, and the state of code and libraries."""
    FrozenPlan.of(builder.experiment, builder.graph).write(run_dir / "plan.json")
    record_environment(run_dir)


def record_environment(run_dir: Path) -> None:
    """Write the state of code and libraries, unless that is what was written."""
    git = git_state(Path.cwd())
    record: dict[str, JsonValue] = {
        "git": {"commit": git["commit"], "dirty": git["dirty"]},
        "libraries": dict(library_versions()),
    }
    path = run_dir / ENVIRONMENT_FILE
    with suppress(OSError, ValueError):  # none yet, or damaged
        if json.loads(path.read_text(encoding="utf-8")) == record:
            return
    write_json_atomic(path, record)


def end(builder: Builder, run_dir: Path, console: Console, *, seconds: float | None) -> Path:
    """End a run whose report is ready, on one machine or row by row: report in the run folder, W&B
    summary, table and verdict on the screen; `report: PATH` is the last line. Writes `times.json`.
    Returns the report's folder.

    `seconds`: what the run took, where one process knows it."""
    from cpt_residual.results.document import read_results

    experiment, report_dir = builder.experiment, run_dir / "report"
    artifact = builder.store.path_of(builder.graph[REPORT_NODE])
    copy_files(artifact, report_dir, leave_out=(MANIFEST, RECEIPT))
    results = read_results(report_dir)
    track_report(
        experiment.tracking,
        experiment=experiment.name,
        seed=experiment.seed,
        fingerprint=builder.graph.fingerprint,
        run_dir=run_dir,
        summary=_summary_table(results, report_dir),
    )
    _show(results, report_dir, console)
    shutil.rmtree(run_dir / VERIFIED_FOLDER, ignore_errors=True)
    paragraph(console, _times(builder, report_dir, seconds))
    say_uploads(run_dir, console)
    for figure in sorted((report_dir / "figures").glob("*.png")):
        console.print(f"figure: {figure}", markup=False, soft_wrap=True)
    console.print(f"report: {report_dir / 'report.md'}", markup=False, soft_wrap=True)
    return report_dir


def _summary_table(results: Results, report_dir: Path) -> SummaryTable:
    """All scores and figures of a report, for W&B."""
    from cpt_residual.results.table import COLUMNS

    figures = sorted((report_dir / "figures").glob("*.png"))
    rows = [tuple(row.model_dump().values()) for row in results.table.rows]
    return SummaryTable(COLUMNS, rows, figures)


def _show(results: Results, report_dir: Path, console: Console) -> None:
    """Print the comparison and the verdict."""
    from cpt_residual.report.tables import comparison_table, comparison_text

    console.print()
    if console.is_terminal:
        table, hidden = comparison_table(results, width=console.width)
        console.print(table, soft_wrap=False)
        if hidden:
            paragraph(console, f"Not shown at this width: {', '.join(hidden)}. The whole table:")
            console.print(str(report_dir / "report.md"), markup=False, soft_wrap=True)
    else:
        console.print(comparison_text(results), markup=False)
    console.print()
    if results.verdict is not None:
        paragraph(console, results.verdict.headline, style="bold")
        for text in results.verdict.paragraphs:
            paragraph(console, text)
    console.print()


def say_uploads(run_dir: Path, console: Console, node: str | None = None) -> None:
    """Which runs W&B has not got, and the command that uploads them; lines that are not broken."""
    for line in upload_lines(run_dir, node):
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _times(builder: Builder, report_dir: Path, seconds: float | None) -> str:
    """Write `times.json` from the receipts; one line about them."""
    receipts = {node.stage.node: builder.store.receipt(node) for node in builder.graph.distinct()}
    found = {name: receipt for name, receipt in receipts.items() if receipt is not None}
    table: dict[str, JsonValue] = {
        name: {"seconds": receipt.seconds, "peak_rss_bytes": receipt.peak_rss_bytes}
        for name, receipt in found.items()
    }
    write_json_atomic(report_dir / TIMES_FILE, {"run_seconds": seconds, "stages": table})
    total = sum(receipt.seconds for receipt in found.values())
    peak = max((receipt.peak_rss_bytes for receipt in found.values()), default=0)
    whole = "" if seconds is None else f"this run took {duration(seconds)}; "
    return (
        f"{whole}all stages took {duration(total)} when they were "
        f"built, peak memory {format_bytes(peak)} a process"
    )
