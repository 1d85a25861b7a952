"""The harness of the benchmarks, and what `benchmarks/data.py` calls correct."""

from __future__ import annotations

import importlib
import sys
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
    run = load("harness").Run
    runs = {
        name: [run(1.0, 1.0, 1.0, 1, 1, {"tokens": number, "rows_sha256": "x"})]
        for name, number in tokens.items()
    }
    assert load("data").correctness({"small": 100}, {"small": runs})["holds"] is holds


def test_a_command_that_fails_ends_the_benchmark_unless_it_is_a_peer(
    load: Any, tmp_path: Path
) -> None:
    harness = load("harness")
    bench = harness.Bench(tmp_path / "scratch")

    def failing(out: Path) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no such model')", str(out)]

    peer, ours = (harness.Contender("x", kind, {"": failing}) for kind in ("peer", "ours"))
    assert bench.rounds([peer], "cold", num=2) == {}
    assert "no such model" in bench.failed["x"]
    with pytest.raises(harness.RunError, match="no such model"):
        bench.once(ours, "", "cold")


def test_a_run_says_what_it_took_and_leaves_nothing(load: Any, tmp_path: Path) -> None:
    harness = load("harness")
    bench = harness.Bench(tmp_path / "scratch")
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(); bytearray(50 << 20)"

    def works(out: Path) -> list[str]:
        return [sys.executable, "-c", code, str(out)]

    runs = bench.rounds([harness.Contender("x", "ours", {"": works})], "cold", num=1)
    assert runs["x"][0].peak_bytes > 50 << 20
    assert runs["x"][0].seconds > 0
    assert not (tmp_path / "scratch/out").exists()
    assert harness.ratio(runs, "x", "x")["of_medians"] == 1.0
