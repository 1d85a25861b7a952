"""What `benchmarks/data.py` keeps and calls correct; it is run by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_a_corpus_of_another_size_is_made_anew(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("data_corpus")
    text = tmp_path / "a.txt"
    text.write_text("x" * 1000)
    document = SimpleNamespace(path=text, size=1000)
    monkeypatch.setattr(module, "installed_documents", lambda: [document])
    folder = tmp_path / "corpus"
    small = module.make_corpus(folder, num_bytes=500).facts
    assert small.num_bytes == 1000
    stamp = (folder / "facts.json").stat().st_mtime_ns
    assert module.make_corpus(folder, num_bytes=500).facts == small
    assert (folder / "facts.json").stat().st_mtime_ns == stamp
    assert module.make_corpus(folder, num_bytes=5000).facts.num_bytes >= 5000


@pytest.mark.parametrize(
    ("tokens", "holds"),
    [
        ({"encode_batch_fast": 90}, None),
        ({"pack_stage": 100, "datasets_map": 99}, True),
        ({"pack_stage": 99}, False),
        ({"pack_stage": 100, "datasets_map": 60}, False),
    ],
)
def test_what_is_correct(load: Any, tokens: dict[str, int], holds: bool | None) -> None:
    run = load("data_rounds").Run
    runs = {
        name: [run(1.0, 1.0, 1.0, 1, 1, number, {"rows_sha256": "x"})]
        for name, number in tokens.items()
    }
    bench = SimpleNamespace(budgets={"small": 100})
    assert load("data")._correctness(bench, {"small": runs})["holds"] is holds
