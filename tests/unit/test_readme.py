"""The experiment files that the README shows are complete: each can be planned as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.corpora import LocalCorpus
from cpt_residual.plan import main as plan
from support.commands import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FILES = {
    text.split("\nname: ")[1].split("\n")[0]: text
    for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with some text and the README's files in `my_conf/experiment`."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": f"Document {number} of mine."}) for number in range(300)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "my_conf" / "experiment" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_the_readme_shows_files_for_the_tiny_family_and_for_a_released_pair() -> None:
    assert sorted(FILES) == ["mine", "mine_filtered", "mine_qwen"]
    for name in FILES:
        assert f"my_conf/experiment/{name}.yaml" in README


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_the_readme_can_be_planned(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(["--config-dir", "my_conf", f"+experiment={name}", "--json"]) == 0
    stages = {stage["node"] for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert "corpus:new_domain" in stages
    assert ("world" in stages) == (name == "mine")
    assert ("references" in stages) == (name == "mine_filtered")
    corpus = compose([f"+experiment={name}"], config_dir=folder / "my_conf").corpora["new_domain"]
    assert isinstance(corpus, LocalCorpus)
    assert corpus.files == ["data/*.jsonl"]


def test_the_row_of_the_table_fits_the_released_pair() -> None:
    (row,) = [line for line in README.splitlines() if line.startswith("| your own text |")]
    arguments = re.findall(r"(\+experiment=\w+) (corpus=local) '(.*?)'", row)[0]
    corpus = compose(arguments).corpora["new_domain"]
    assert corpus == LocalCorpus(kind="local", files=["/data/*.jsonl"], heldout_documents=100)
