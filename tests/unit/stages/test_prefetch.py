"""What a run needs from the network; and pins of local files, which are checked with the plan."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cpt_residual.config.compose import compose
from cpt_residual.core.store import Store
from cpt_residual.data.readers.files import content_sha256
from cpt_residual.errors import CompatibilityError, CorpusError, EvaluationError
from cpt_residual.evaluation import stock
from cpt_residual.stages import prefetch
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.prefetch import network_nodes, prefetch_experiment
from cpt_residual.stages.registry import build_graph, localised

CONTAMINATION = "+corpora.new_domain.filters.contamination.action=drop"


def downloads(tmp_path: Path, *overrides: str) -> set[str]:
    graph = build_graph(compose(overrides), Store(tmp_path))
    return {node.stage.node for node in network_nodes(graph)}


def test_models_hub_corpora_and_questions_are_what_downloads(tmp_path: Path) -> None:
    pair = {"base", "instruct", "corpus:new_domain"}
    assert downloads(tmp_path, "+experiment=llama3_500m") == pair
    asked = downloads(tmp_path, "+experiment=llama3_500m", CONTAMINATION)
    assert asked == pair | {"references"}
    assert downloads(tmp_path, "+experiment=smoke") == set()


def test_what_a_download_is_made_from_is_built_too(tmp_path: Path) -> None:
    """A hub corpus that is checked for the world's probes needs the world."""
    hub = "{kind: hub, part: null, repo: o/d, revision: " + "a" * 40 + ", max_characters: 9}"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke, _self_]\nname: mine\ngoals: null\n"
        f"corpora: {{new_domain: {hub}}}\n"
        "suites: {world: {probes: [old_facts]}}\nevaluation: {suites: [world]}\n"
    )
    graph = build_graph(
        compose(["+experiment=mine", CONTAMINATION], config_dir=tmp_path), Store(tmp_path / "s")
    )
    nodes = [node.stage.node for node in network_nodes(graph)]
    assert nodes == ["world", "references", "corpus:new_domain"]


def test_without_anything_to_build_the_evaluation_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = EvaluationError("The data of task x cannot be loaded.")

    def fetch(tasks: object) -> list[str]:
        raise missing

    monkeypatch.setattr(stock, "fetch_task_data", fetch)
    experiment = localised(compose(["+experiment=smoke", f"paths.root={tmp_path}"]))
    console = Console(file=StringIO(), soft_wrap=True)
    assert prefetch_experiment(experiment, console) == (missing,)
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_missing_task_is_said_once_and_each_fault_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = EvaluationError("The data of task x cannot be loaded.")
    listed = CompatibilityError("2 faults", problems=[f"evaluate: {missing.what}", "base: bad"])

    def fetch(tasks: object) -> list[str]:
        raise missing

    def check(*_: object) -> None:
        raise listed

    monkeypatch.setattr(stock, "fetch_task_data", fetch)
    monkeypatch.setattr(prefetch, "check_released", check)
    experiment = localised(compose(["+experiment=smoke", f"paths.root={tmp_path}"]))
    assert prefetch_experiment(experiment, Console(file=StringIO())) == (listed,)
    assert capsys.readouterr().err.splitlines() == [
        "CompatibilityError: 2 faults",
        "  evaluate: The data of task x cannot be loaded.",
        "  base: bad",
    ]


def test_pinned_files_are_compared_when_the_run_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    overrides = [
        "+experiment=llama3_500m",
        "corpus=local",
        f"corpora.new_domain.files=[{tmp_path}]",
    ]
    stage = build_graph(compose(overrides), Store(tmp_path / "s"))["corpus:new_domain"].stage
    assert isinstance(stage, Corpus)
    pin = f"+corpora.new_domain.content_sha256={content_sha256(stage.file_hashes)}"
    build_graph(compose([*overrides, pin]), Store(tmp_path / "s"))
    (tmp_path / "b.txt").write_text("two")
    with pytest.raises(CorpusError, match=r"corpora\.new_domain: the files are not those"):
        build_graph(compose([*overrides, pin]), Store(tmp_path / "s"))
