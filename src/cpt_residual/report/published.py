"""A published report read back: its scores, its per-prompt values, its verdict and goals."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cpt_residual.errors import ArtifactError
from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import Kind, RoleNames
from cpt_residual.report.goals import Goal
from cpt_residual.report.measures import Scores

PAIRS_MEASURE = "strict"


class _Variant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Kind


class _Pair(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    first: str
    second: str
    measure: str


class _Verdict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: str
    headline: str
    paragraphs: tuple[str, ...]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    experiment: str
    question: str
    seed: int
    roles: RoleNames
    new_corpus: str | None
    verdict: _Verdict
    variants: list[_Variant]
    differences: list[_Pair]
    rows: tuple[ResultRow, ...]
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class SeedReport:
    """One published report: its scores, its per-prompt values, its verdict and goals."""

    experiment: str
    question: str
    seed: int
    roles: RoleNames
    kinds: dict[str, Kind]
    rows: tuple[ResultRow, ...]
    scores: Scores
    pairs: tuple[tuple[str, str], ...]
    prompts: dict[str, dict[str, float]]  # prompt -> variant -> strict
    outcome: str
    headline: str
    paragraphs: tuple[str, ...]
    goals: tuple[Goal, ...]


def read_report(folder: Path) -> SeedReport:
    """Read a published report. Raises ArtifactError when the folder is not one."""
    path = folder / "results.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is not a report",
            problems=["results.json is missing"],
            remedy="Give the report folders of finished runs (runs/<run>/report).",
        )
    document = _Document.model_validate_json(path.read_bytes())
    return SeedReport(
        experiment=document.experiment,
        question=document.question,
        seed=document.seed,
        roles=document.roles,
        kinds={variant.name: variant.kind for variant in document.variants},
        rows=document.rows,
        scores=Scores(document.rows, new_corpus=document.new_corpus),
        pairs=tuple(
            (pair.first, pair.second)
            for pair in document.differences
            if pair.measure == PAIRS_MEASURE
        ),
        prompts=_prompts(folder / "prompts.csv"),
        outcome=document.verdict.outcome,
        headline=document.verdict.headline,
        paragraphs=document.verdict.paragraphs,
        goals=document.goals,
    )


def _prompts(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["measure"] == PAIRS_MEASURE:
                found.setdefault(row["prompt"], {})[row["variant"]] = float(row["value"])
    return found
