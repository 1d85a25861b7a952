"""The files of a report: golden tables, byte-equal twice, and graceful gaps."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cpt_residual.report.tables import comparison_table, comparison_text
from cpt_residual.report.write import Findings, write_report
from cpt_residual.results.document import Results, read_results
from cpt_residual.results.outcomes import read_prompts
from cpt_residual.results.table import ResultTable
from support.report_scenarios import (
    HIGH_DRIFT,
    STRICT,
    SUCCESS,
    Line,
    declared_measures,
    facts,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
NO_CONTROLS = {name: line for name, line in SUCCESS.items() if line.kind not in ("alpha", "sft")}


@pytest.fixture(scope="module")
def success(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("success")
    write_report(facts(SUCCESS), folder)
    return folder


@pytest.fixture(scope="module")
def high_drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("high_drift")
    write_report(facts(HIGH_DRIFT, drift=0.35), folder)
    return folder


def document_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_golden(folder: Path, name: str) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / f"{name}.md").write_text(text, encoding="utf-8")
    assert text == (GOLDEN / f"{name}.md").read_text(encoding="utf-8")


def test_report_of_a_success_is_golden(success: Path) -> None:
    assert_golden(success, "success")


def test_report_of_a_failure_is_golden(high_drift: Path) -> None:
    assert_golden(high_drift, "high_drift")


def test_same_facts_same_bytes_whatever_the_row_order(success: Path, tmp_path: Path) -> None:
    given = facts(SUCCESS)
    rows = list(given.results.table.rows)
    random.Random(3).shuffle(rows)
    table = ResultTable.of(rows, declared_measures(), [v.name for v in given.results.variants])
    results = given.results.model_copy(update={"table": table})
    write_report(replace(given, results=results), tmp_path)
    first = tree(success)
    assert first == tree(tmp_path)
    assert len([name for name in first if name.endswith(".png")]) == 7


def test_what_was_written_is_read_as_the_same_value(success: Path) -> None:
    given = facts(SUCCESS)
    read = read_results(success)
    assert read.model_copy(update={"verdict": None}) == given.results
    assert read_prompts(success / "prompts.csv").values == given.outcomes.values


def test_results_csv_has_all_rows_exactly(success: Path) -> None:
    table = facts(SUCCESS).results.table
    with (success / "results.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["variant", "suite", "task", "metric", "value", "stderr", "n"]
    read = {(r["variant"], r["task"], r["metric"]): float(r["value"]) for r in rows}
    assert read == {(r.variant, r.task, r.metric): r.value for r in table.rows}
    assert rows[0]["variant"] == "base"


def test_no_time_host_or_path_in_any_file(success: Path) -> None:
    for name, content in tree(success).items():
        assert str(success).encode() not in content, name
        assert b"Matplotlib" not in content, name
        assert b"tIME" not in content, name


def test_figures_without_data_are_left_out_and_named(tmp_path: Path) -> None:
    found = facts(NO_CONTROLS, world=False)
    bare = found.results.model_copy(update={"geometry": None, "trainings": ()})
    write_report(Findings(bare, found.outcomes), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    left_out = text[text.index("## Figures left out") :]
    for name in ("tradeoff", "per_type", "alpha", "training", "geometry_heatmaps"):
        assert f"* {name}: " in left_out
        assert not (tmp_path / "figures" / f"{name}.png").exists()
        assert f"figures/{name}.png" not in text
    assert (tmp_path / "figures" / "comparison.png").is_file()
    assert "by the stock task `ifeval`" in text  # whose score needs no closed turn
    assert "do not require the turn to be closed" in text
    header = next(line for line in text.splitlines() if line.startswith("| variant"))
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        "IF strict %", "IF loose %", "MMLU %", "GSM8K %"
    ]  # fmt: skip
    assert "MMLU: MMLU; a guess gets 25.0 %." in text


def test_a_report_without_any_declared_score_still_says_so(tmp_path: Path) -> None:
    given = facts(SUCCESS).results
    rows = [row.model_copy(update={"task": "x", "metric": "y"}) for row in given.table.rows[:1]]
    table = ResultTable.of(rows, declared_measures(), [v.name for v in given.variants])
    changes = {"table": table, "families": (), "geometry": None, "trainings": ()}
    empty = given.model_copy(update=changes)
    verdict = write_report(replace(facts(SUCCESS), results=empty), tmp_path)
    assert verdict.outcome == "not_measured"
    assert "No verdict" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_results_json_carries_verdict_goals_and_costs(success: Path) -> None:
    document = document_of(success)
    assert document["verdict"]["outcome"] == "lost"
    assert [goal["passed"] for goal in document["goals"]] == [True] * 5
    costs = {variant.name: variant.flops for variant in read_results(success).variants}
    assert (costs["base_cpt_sft"] or 0) > (costs["base_cpt_residual"] or 0) > 0
    assert costs["instruct"] == 0
    assert document["geometry"]["drift"]["base_cpt"] == 0.123


def test_missed_goals_are_shown_as_missed(high_drift: Path) -> None:
    document = document_of(high_drift)
    assert {goal["key"]: goal["passed"] for goal in document["goals"]} == {
        "instruct": False,
        "forgetting": True,
        "loss": False,
        "perplexity": False,
        "new_facts": False,
    }


def goals_of(lines: dict[str, Line]) -> dict[str, tuple[bool | None, float | None]]:
    return {goal.key: (goal.passed, goal.value) for goal in facts(lines).results.goals}


def test_zero_new_facts_of_instruct_do_not_divide() -> None:
    lines = {**SUCCESS, "instruct": replace(SUCCESS["instruct"], new_facts=0.0)}
    assert goals_of(lines)["new_facts"] == (True, None)


def test_no_new_fact_known_meets_no_goal() -> None:
    """0 is three times 0, and means that nothing was learnt."""
    lines = {name: replace(line, new_facts=0.0) for name, line in SUCCESS.items()}
    assert goals_of(lines)["new_facts"][0] is False


def terminal(given: Results, width: int = 160) -> tuple[str, list[str]]:
    console = Console(width=width, record=True, file=StringIO(), soft_wrap=True)
    table, hidden = comparison_table(given, width=width)
    console.print(table, soft_wrap=False)
    return console.export_text(), hidden


def test_terminal_table_and_plain_text_show_the_same_cells() -> None:
    given = facts(SUCCESS).results
    text = comparison_text(given)
    lines = text.splitlines()
    assert lines[0].split()[0] == "variant"
    assert len(lines) == 1 + len(SUCCESS)
    table, hidden = terminal(given)
    assert hidden == []
    merged = next(line for line in lines if line.startswith("base_cpt_residual "))
    for cell in merged.split():
        assert cell in table


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 102, 120])
def test_a_narrow_terminal_shows_fewer_measures_and_never_half_a_number(width: int) -> None:
    given = facts(SUCCESS).results
    table, hidden = terminal(given, width)
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= max(width, 36)
    header, *lines = comparison_text(given).splitlines()
    headings = re.split(r"\s{2,}", header)
    for line in lines:
        name, *cells = re.split(r"\s{2,}", line)
        shown = [cell for cell, head in zip(cells, headings[1:], strict=True) if head not in hidden]
        if width >= 40:
            assert any(row.split() == [name, *shown] for row in table.splitlines())
    assert "IF strict" not in hidden
    first = {"IF strict", "new facts", "IF + fact", "bits/byte new"}
    if width >= 80:
        assert not first & set(hidden)
        assert "bits/byte" in table
        assert "IF +" in table


def test_the_strict_score_comes_from_ifeval_when_there_are_no_probes() -> None:
    measure = facts(SUCCESS, world=False).results.table.measure("instruction_following")
    assert measure is not None
    assert measure.name == "ifeval/prompt_level_strict_acc"
    with_probes = facts(SUCCESS).results.table.measure("instruction_following")
    assert with_probes is not None
    assert with_probes.name == STRICT
