"""What a finished run shows: comparison, verdict, times, figures, and where the report is."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from cpt_residual.core.disk import format_bytes
from cpt_residual.core.files import write_json_atomic
from cpt_residual.launch.console import duration, paragraph
from cpt_residual.stages.execute import Builder
from cpt_residual.tracking.outcome import upload_lines

TIMES_FILE = "times.json"
"""Measured times and peak memory of every stage. Beside the report, not part of its artifact:
they differ from machine to machine while the report is the same to the byte."""


def show_results(builder: Builder, run_dir: Path, console: Console, *, seconds: float) -> None:
    """Print the comparison and paths; `report: PATH` is the last line. Writes `times.json`."""
    from cpt_residual.report.published import read_report
    from cpt_residual.report.tables import comparison_table, comparison_text

    report_dir = run_dir / "report"
    report = read_report(report_dir)
    file = report_dir / "report.md"
    console.print()
    if console.is_terminal:
        table, hidden = comparison_table(report.kinds, report.scores, width=console.width)
        console.print(table, soft_wrap=False)
        if hidden:
            paragraph(console, f"Not shown at this width: {', '.join(hidden)}. The whole table:")
            console.print(str(file), markup=False, soft_wrap=True)
    else:
        console.print(comparison_text(report.kinds, report.scores), markup=False)
    console.print()
    paragraph(console, report.headline, style="bold")
    for text in report.paragraphs:
        paragraph(console, text)
    console.print()
    paragraph(console, _times(builder, report_dir, seconds))
    say_uploads(run_dir, console)
    for figure in sorted((report_dir / "figures").glob("*.png")):
        console.print(f"figure: {figure}", markup=False, soft_wrap=True)
    console.print(f"report: {file}", markup=False, soft_wrap=True)


def say_uploads(run_dir: Path, console: Console, node: str | None = None) -> None:
    """Which runs W&B has not got, and the command that uploads them; lines that are not broken."""
    for line in upload_lines(run_dir, node):
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _times(builder: Builder, report_dir: Path, seconds: float) -> str:
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
    return (
        f"this run took {duration(seconds)}; all stages took {duration(total)} when they were "
        f"built, peak memory {format_bytes(peak)} a process"
    )
