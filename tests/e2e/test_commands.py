"""What the commands say to bad input, and that every experiment can be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.commands import REPOSITORY, call

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf/experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_planned_without_torch(experiment: str, tmp_path: Path) -> None:
    done = call("plan", f"+experiment={experiment}", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert {stage["status"] for stage in stages} == {"missing"}
    assert stages[-1]["node"] == "report"
    trained = [stage for stage in stages if stage["node"].startswith("cpt:")]
    assert trained
    assert all(stage["cost"]["tokens"] and stage["cost"]["flops"] for stage in trained)
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_an_unknown_experiment_names_the_nearest(tmp_path: Path) -> None:
    done = call("run", "+experiment=tiny_high_drif", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'tiny_high_drift'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    done = call("plan", "+experiment=tiny", "packs.cpt.token_bugdet=9", cwd=tmp_path)
    assert done.returncode == 2
    assert "packs.cpt.token_bugdet" in done.stderr
    assert "token_budget" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_that_is_not_there_or_not_a_plan(tmp_path: Path) -> None:
    missing = call("row", "plan.json", "0", cwd=tmp_path)
    assert missing.returncode == 2
    assert "no plan at" in missing.stderr
    (tmp_path / "plan.json").write_text("{}")
    broken = call("row", "plan.json", "0", cwd=tmp_path)
    assert broken.returncode == 2
    assert "is not a frozen plan" in broken.stderr


def test_gc_on_an_empty_root(tmp_path: Path) -> None:
    done = call("cli", "gc", "--root", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 items" in done.stdout
