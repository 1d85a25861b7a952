"""Several seeds: mean and spread, every seed as it is, a pooled paired test."""

from __future__ import annotations

import csv
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError
from cpt_residual.report.format import MINUS
from cpt_residual.report.seeds import write_seed_report
from cpt_residual.report.write import write_report
from cpt_residual.results.document import read_results
from support.report_scenarios import HIGH_DRIFT, SUCCESS, facts, without_goals


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("reports")
    for seed in range(3):
        lines = HIGH_DRIFT if seed == 2 else {name: SUCCESS[name] for name in HIGH_DRIFT}
        write_report(facts(lines, seed=seed), root / str(seed))
    return [root / str(seed) for seed in range(3)]


def test_a_failing_seed_is_shown_as_it_is(folders: list[Path], tmp_path: Path) -> None:
    text = write_seed_report(folders, tmp_path).read_text(encoding="utf-8")
    assert "**Seeds.** 3 of 3 lost." in text
    loss = next(
        line for line in text.splitlines() if line.startswith(f"| instruct {MINUS} base_cpt_res")
    )
    assert "NO" in loss
    assert "2 of 3" in loss
    assert "* seed 2: Lost on instruction following, strict: base_cpt_residual 4.6 %" in text
    assert (tmp_path / "figures" / "seeds.png").is_file()


def test_a_seed_without_a_report_is_named_and_counts(folders: list[Path], tmp_path: Path) -> None:
    text = write_seed_report(folders, tmp_path, unfinished=[7]).read_text(encoding="utf-8")
    total = len(folders) + 1
    assert f"1 of {total} not finished (seed 7)" in text
    goals = next(line for line in text.splitlines() if line.startswith("| goal"))
    assert "seed 7" in goals
    assert f"of {total} |" in text


def test_summary_is_mean_sample_std_min_and_max(folders: list[Path], tmp_path: Path) -> None:
    write_seed_report(folders, tmp_path)
    tables = [read_results(folder).table for folder in folders]
    values = [t.value("instruct", t.measure("instruction_following")) for t in tables]
    assert all(value is not None for value in values)
    known = [value for value in values if value is not None]
    with (tmp_path / "summary.csv").open(newline="") as lines:
        row = next(
            row
            for row in csv.DictReader(lines)
            if (row["variant"], row["metric"]) == ("instruct", "prompt_level_strict_acc")
            and row["task"] == "instruction_following"
        )
    assert float(row["mean"]) == pytest.approx(statistics.fmean(known))
    assert float(row["std"]) == pytest.approx(statistics.stdev(known))
    assert (float(row["min"]), float(row["max"])) == (min(known), max(known))
    assert row["seeds"] == "3"


def test_the_pooled_contrasts_take_the_prompts_of_all_seeds(
    folders: list[Path], tmp_path: Path
) -> None:
    text = write_seed_report(folders, tmp_path).read_text(encoding="utf-8")
    pooled, each = (
        line.split("|")
        for line in text.splitlines()
        if line.startswith("| instruct_cpt ") and "IF strict" in line
        if f"{MINUS} instruct" in line or "…" not in line
    )
    assert pooled[5].strip().endswith("of 582")
    gaps = [float(cell.replace(MINUS, "-")) for cell in each[3:6]]
    assert float(pooled[3].replace(MINUS, "-")) == pytest.approx(statistics.fmean(gaps), abs=0.11)


def test_seeds_that_disagree_leave_a_contrast_undecided(tmp_path: Path) -> None:
    lines = {**HIGH_DRIFT, **SUCCESS}
    for seed, strict in enumerate((0.5, 0.5, 0.95)):
        rival = replace(lines["base_cpt_sft"], strict=strict)
        write_report(facts({**lines, "base_cpt_sft": rival}, seed=seed), tmp_path / str(seed))
    folders = [tmp_path / str(seed) for seed in range(3)]
    text = write_seed_report(folders, tmp_path / "seeds").read_text(encoding="utf-8")
    row = next(x for x in text.splitlines() if x.startswith("| base_cpt_sft \u2212 base_cpt_res"))
    assert "< 0.0001" in row
    assert row.endswith("undecided |")


def test_without_goals_there_is_no_section_of_them(tmp_path: Path) -> None:
    for seed in range(2):
        write_report(without_goals(facts(HIGH_DRIFT, seed=seed)), tmp_path / str(seed))
        assert "## Goals" not in (tmp_path / str(seed) / "report.md").read_text(encoding="utf-8")
    report = write_seed_report([tmp_path / "0", tmp_path / "1"], tmp_path / "seeds")
    assert "## Goals" not in report.read_text(encoding="utf-8")


def test_seeds_that_were_set_different_goals_are_refused(
    folders: list[Path], tmp_path: Path
) -> None:
    write_report(without_goals(facts(HIGH_DRIFT, seed=5)), tmp_path / "5")
    with pytest.raises(ArtifactError, match="different goals"):
        write_seed_report([folders[0], tmp_path / "5"], tmp_path / "out")


def test_order_of_the_folders_does_not_count(folders: list[Path], tmp_path: Path) -> None:
    first = write_seed_report(folders, tmp_path / "a")
    second = write_seed_report(folders[::-1], tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    png = Path("figures") / "seeds.png"
    assert (tmp_path / "a" / png).read_bytes() == (tmp_path / "b" / png).read_bytes()


def test_one_seed_has_no_spread(folders: list[Path], tmp_path: Path) -> None:
    text = write_seed_report(folders[:1], tmp_path).read_text(encoding="utf-8")
    assert "±" not in text[text.index("## Goals") : text.index("## Comparison")]
    assert "**Seeds.** 1 of 1 lost." in text


def test_the_same_seed_twice_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="seed 0 twice"):
        write_seed_report([folders[0], folders[0]], tmp_path)


def test_a_folder_that_is_no_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"results\.json is missing"):
        read_results(tmp_path)


def test_a_report_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1}')
    with pytest.raises(ArtifactError, match="of another version, or damaged"):
        read_results(tmp_path)


def test_nothing_to_aggregate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no reports"):
        write_seed_report([], tmp_path)


def test_a_seed_that_lacks_a_measure_is_named(folders: list[Path], tmp_path: Path) -> None:
    write_report(facts(HIGH_DRIFT, seed=6, world=False), tmp_path / "6")
    with pytest.raises(ArtifactError, match="seed 6 has other variants or measures than seed 0"):
        write_seed_report([folders[0], tmp_path / "6"], tmp_path / "out")
