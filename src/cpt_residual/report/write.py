"""Write a report's files. Same facts, same bytes: no times, hosts or paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cpt_residual.report.facts import Difference, ReportFacts
from cpt_residual.report.figures import FigureNote, draw_figures
from cpt_residual.report.goals import Goal, check_goals
from cpt_residual.report.markdown import report_markdown
from cpt_residual.report.measures import MEASURES, Scores
from cpt_residual.report.tables import ordered_rows, prompts_csv, results_csv
from cpt_residual.report.verdict import Evidence, Verdict, judge

SCHEMA = 1


def write_report(
    facts: ReportFacts,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verdict:
    """results.csv, results.json, prompts.csv, report.md and figures/*.png below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = Scores.of(facts)
    verdict = judge(evidence_of(facts, scores))
    goals = check_goals(facts.goals, scores, facts.roles)
    notes = draw_figures(facts, scores, folder / "figures", progress=progress)
    _write(folder / "results.csv", results_csv(ordered_rows(facts)))
    _write(folder / "prompts.csv", prompts_csv(facts))
    _write(folder / "results.json", _json(facts, verdict, goals, notes))
    _write(folder / "report.md", report_markdown(facts, scores, verdict, goals, notes))
    return verdict


def evidence_of(facts: ReportFacts, scores: Scores) -> Evidence:
    """What the verdict looks at, out of all facts."""
    names = [variant.name for variant in facts.variants]
    table = {
        measure.key: {
            name: value for name in names if (value := scores.value(name, measure.key)) is not None
        }
        for measure in MEASURES
    }
    pairs: dict[str, dict[tuple[str, str], Difference]] = {}
    for difference in facts.differences:
        group = pairs.setdefault(difference.measure, {})
        group[(difference.first, difference.second)] = difference
    drift = facts.geometry.drift if facts.geometry else dict[str, float]()
    return Evidence(facts.roles, facts.variants, table, pairs, drift)


def _json(
    facts: ReportFacts, verdict: Verdict, goals: tuple[Goal, ...], notes: tuple[FigureNote, ...]
) -> str:
    geometry = facts.geometry
    document: dict[str, object] = {
        "schema": SCHEMA,
        "experiment": facts.experiment,
        "question": facts.question,
        "seed": facts.seed,
        "roles": asdict(facts.roles),
        "new_corpus": facts.new_corpus,
        "verdict": {
            "outcome": verdict.outcome,
            "headline": verdict.headline,
            "paragraphs": list(verdict.paragraphs),
        },
        "variants": [{**asdict(variant), "flops": variant.flops} for variant in facts.variants],
        "differences": [asdict(difference) for difference in facts.differences],
        "trainings": [
            {k: v for k, v in asdict(training).items() if k != "trace"}
            for training in facts.trainings
        ],
        "geometry": None
        if geometry is None
        else {
            "drift": dict(geometry.drift),
            "cosine": dict(geometry.cosine),
            "other": dict(geometry.other),
        },
        "figures": [asdict(note) for note in notes],
        "notes": list(facts.notes),
        "rows": [asdict(row) for row in ordered_rows(facts)],
    }
    if goals:
        document["goals"] = [asdict(goal) for goal in goals]
    return (
        json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
