"""Every ready corpus: it plans with the released pairs, and is pinned as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.corpora import HubCorpus
from cpt_residual.config.folders import conf_dir
from cpt_residual.core.store import Store
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.prefetch import network_nodes
from cpt_residual.stages.registry import build_graph

FILES = sorted((conf_dir() / "corpus").glob("*.yaml"))
FOR_PAIRS = [path.stem for path in FILES if path.stem not in ("world", "local")]


@pytest.mark.parametrize("experiment", ["llama3_500m", "qwen2_5_1b5_500m"])
@pytest.mark.parametrize("name", FOR_PAIRS)
def test_it_plans(name: str, experiment: str, tmp_path: Path) -> None:
    composed = compose([f"+experiment={experiment}", f"corpus={name}"])
    graph = build_graph(composed, Store(tmp_path))
    stage = graph["corpus:new_domain"].stage
    assert isinstance(stage, Corpus)
    assert isinstance(stage.corpus, HubCorpus)
    assert "corpus:new_domain" in {node.stage.node for node in network_nodes(graph)}
    budget = composed.packs["cpt"].token_budget
    assert stage.corpus.max_characters > 4 * budget, "500 M tokens have to be in it"
    assert stage.corpus.heldout_documents > 0


@pytest.mark.parametrize("name", FOR_PAIRS)
def test_its_head_says_what_it_is(name: str) -> None:
    text = (conf_dir() / "corpus" / f"{name}.yaml").read_text()
    head = text[: text.index("new_domain:")]
    assert re.search(r"ODC-By|CC BY|CC0", head), "the licence"
    assert re.search(r"20\d\d", head), "from when it is"
    assert re.search("Llama 3|Qwen", head), "for which models it is new"


def test_a_folder_of_ones_own_is_three_lines(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("one document")
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [qwen2_5_1b5_500m, {override /corpus: local}, _self_]\n"
        "corpora:\n"
        "  new_domain:\n"
        f"    files: [{tmp_path / 'text'}]\n"
    )
    composed = compose(["+experiment=mine"], config_dir=tmp_path / "conf")
    stage = build_graph(composed, Store(tmp_path / "store"))["corpus:new_domain"].stage
    assert isinstance(stage, Corpus)
    assert list(stage.file_hashes) == [str(tmp_path / "text/a.txt")]
