"""`verify --run`, `lineage` and `gc` in this process: which store they mean, and folders that are
none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cpt_residual.cli.store import gc, lineage, verify_run
from cpt_residual.errors import ArtifactError, ConfigError
from cpt_residual.plan import main as plan
from cpt_residual.row import main as row

CUT = ["+experiment=smoke", "evaluation.variants=[base]", "evaluation.suites=[heldout]"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one artifact, the world, and the run that made it."""
    place = tmp_path_factory.mktemp("built")
    assert plan([*CUT, f"paths.root={place / 'outputs'}", "--out", str(place / "plan.json")]) == 0
    assert row([str(place / "plan.json"), "0"]) == 0
    return place / "outputs"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy [x] :ok:"))


def run_of(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def damage(root: Path) -> None:
    (world,) = (root / "store" / "world").iterdir()
    documents = world / "general.jsonl"
    documents.write_bytes(documents.read_bytes().replace(b"a", b"b", 1))


def test_a_copied_run_is_verified_in_its_own_store(
    built: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    verify_run(run_of(copy))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"store: {copy / 'store'}"
    assert said[1].startswith("corrupt  world ")
    verify_run(run_of(built))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"store: {built / 'store'}"
    assert said[1].startswith("ready    world ")


def test_lineage_names_the_store(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lineage(run_of(copy), "base")
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"store: {copy / 'store'}"
    assert said.err == ""


def test_a_run_without_a_store_beside_it_belongs_to_the_store_of_its_plan(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_of(built), tmp_path / "elsewhere" / "runs" / "mine")
    lineage(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"store: {built / 'store'}"


def test_an_edited_plan_of_a_run_is_warned_about(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_of(copy) / "plan.json"
    content = json.loads(path.read_text())
    content["config"]["seed"] = 5
    path.write_text(json.dumps(content))
    verify_run(run_of(copy))
    said = capsys.readouterr()
    assert "plan.json was changed since (world, scratch, " in said.err
    assert "missing  world " in said.out


@pytest.mark.parametrize("where", [".", "runs", "runs/nope", "nope"])
def test_a_folder_that_is_no_run_lists_the_runs(copy: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run") as caught:
        verify_run(copy / where)
    assert caught.value.problems == (str(run_of(copy)),)
    assert "Give --run one folder below paths.root/runs" in caught.value.remedy


def test_without_any_run_it_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder") as caught:
        lineage(tmp_path / "nope")
    assert caught.value.problems == ()
    assert "outputs/runs/TIME-EXPERIMENT-PLAN" in caught.value.remedy


def test_gc_of_what_is_no_root_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="there is no store below"):
        gc(copy / "misspelt")
    with pytest.raises(ConfigError) as caught:
        gc(copy / "store", delete=True)
    assert caught.value.what.endswith(f" Did you mean {copy}?")
    gc(copy)
    assert capsys.readouterr().out == "0 items, 0 B\n"
    shutil.rmtree(copy / "runs")
    with pytest.raises(ArtifactError, match="everything in the store would be garbage"):
        gc(copy, delete=True)
    (copy / "runs").mkdir()
    gc(copy)
    said = capsys.readouterr().out
    assert str(copy / "store" / "world") in said
    assert "1 item, " in said
