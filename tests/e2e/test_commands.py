"""What the commands say to bad input, and that every experiment can be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.commands import REPOSITORY, call, run_code

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


def test_a_plan_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from cpt_residual.plan import main; status = main(['+experiment=tiny'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'wandb', 'matplotlib', 'numpy'}\n"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    done = run_code(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_verify_finds_an_edited_byte(tmp_path: Path) -> None:
    cut = ["+experiment=smoke", "evaluation.variants=[base]", "evaluation.suites=[heldout]"]
    assert call("plan", *cut, "--out", "plan.json", cwd=tmp_path).returncode == 0
    assert call("row", "plan.json", "0", cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "outputs/runs").iterdir()
    (world,) = (tmp_path / "outputs/store/world").iterdir()
    documents = world / "general.jsonl"
    documents.write_bytes(documents.read_bytes().replace(b"a", b"b", 1))
    verified = call("cli", "verify", "--run", str(run), cwd=tmp_path)
    assert verified.returncode == 1
    assert "corrupt  world" in verified.stdout
    assert "general.jsonl" in verified.stdout
    refused = call("run", *cut, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("sha256") >= 2 or "recorded" in refused.stderr
    tree = call("cli", "lineage", "base", "--run", str(run), cwd=tmp_path)
    assert tree.returncode == 0, tree.stderr
    assert "pretrain:base" in tree.stdout
    unknown = call("cli", "lineage", "bse", "--run", str(run), cwd=tmp_path)
    assert unknown.returncode == 2
    wrong = call("cli", "verify", "--rnu", str(run), cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr + unknown.stderr + refused.stderr


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


def test_gc_of_a_root_without_a_store_is_refused(tmp_path: Path) -> None:
    done = call("cli", "gc", "--root", "misspelt", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no store below misspelt" in done.stderr
    (tmp_path / "outputs" / "store").mkdir(parents=True)
    empty = call("cli", "gc", cwd=tmp_path)
    assert empty.returncode == 0, empty.stderr
    assert "0 items" in empty.stdout


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in ("file", "file/below"):
        done = call("run", "+experiment=smoke", f"paths.root={root}", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{tmp_path / 'file'} is a file" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    done = call("run", "+experiment=smoke", "paths.root=/proc/outputs", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing can be written below paths.root: /proc/outputs/store" in done.stderr
    assert "Traceback" not in done.stderr
