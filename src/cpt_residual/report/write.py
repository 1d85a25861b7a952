"""Write a report's files. Same results, same bytes: no times, hosts or paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cpt_residual.report.figures import Pictured, draw_figures
from cpt_residual.report.markdown import report_markdown
from cpt_residual.report.verdict import judge
from cpt_residual.results.document import Results, Verdict
from cpt_residual.results.outcomes import PROMPTS_FILE, Outcomes


@dataclass(frozen=True)
class Findings:
    """What a report is written from; the verdict of `results` is filled in by `write_report`."""

    results: Results
    outcomes: Outcomes
    pictured: Pictured = field(default_factory=Pictured)


def write_report(
    findings: Findings,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verdict:
    """results.csv, results.json, prompts.csv, report.md and figures/*.png below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    verdict = judge(findings.results)
    results = findings.results.model_copy(update={"verdict": verdict})
    notes = draw_figures(results, findings.pictured, folder / "figures", progress=progress)
    results.write(folder)
    for name, text in (
        ("results.csv", results.table.csv()),
        (PROMPTS_FILE, findings.outcomes.csv()),
        ("report.md", report_markdown(results, notes)),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return verdict
