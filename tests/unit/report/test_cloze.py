"""The knowledge probe in the report: a column, what a guess gets, a sentence, paired tests."""

from __future__ import annotations

from dataclasses import replace

from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import ReportFacts
from cpt_residual.report.markdown import report_markdown
from cpt_residual.report.measures import Scores
from cpt_residual.report.pairs import key_pairs, paired_sources
from cpt_residual.report.verdict import judge
from cpt_residual.report.write import evidence_of
from support.report_scenarios import ROLES, SUCCESS, facts

ACCURACY = {"base": 0.31, "instruct": 0.33, "base_cpt": 0.9, "base_cpt_residual": 0.85}


def with_cloze() -> ReportFacts:
    given = facts(SUCCESS)
    rows = [
        ResultRow(name, "cloze", metric, value, 0.01, 500)
        for name, accuracy in ACCURACY.items()
        for metric, value in (
            ("accuracy", accuracy),
            ("accuracy_per_byte", accuracy),
            ("recalled", 0.1),
            ("target_bits_per_byte", 2.0),
            ("chance", 0.25),
        )
    ]
    return replace(given, rows=(*given.rows, *rows))


def written(given: ReportFacts) -> str:
    scores = Scores.of(given)
    return report_markdown(given, scores, judge(evidence_of(given, scores)), (), ())


def test_column_chance_and_sentence() -> None:
    text = written(with_cloze())
    header = next(line for line in text.splitlines() if line.startswith("| variant"))
    merged = next(line for line in text.splitlines() if line.startswith("| base_cpt_residual "))
    column = [cell.strip() for cell in header.split("|")].index("cloze %")
    assert [cell.strip() for cell in merged.split("|")][column] == "85.0"
    assert "A guess gets 25.0 %." in text
    assert (
        "Rare spans of the new text, cloze: base_cpt_residual 85.0 %, base_cpt 90.0 %, "
        "base 31.0 %, instruct 33.0 %." in text
    )
    assert "cloze recalled" not in text, "it is no other task"


def test_nothing_is_said_where_nothing_was_asked() -> None:
    assert "cloze" not in written(facts(SUCCESS))
    assert Scores.of(facts(SUCCESS)).cloze_chance() is None


def test_variants_are_paired_on_the_questions() -> None:
    given = with_cloze()
    assert paired_sources(Scores.of(given))["cloze"] == ("cloze", "accuracy")
    assert (ROLES.merged, ROLES.instruct) in key_pairs("cloze", ROLES, given.variants)
