"""The paper's experiment, pointed at pico models and local text by overrides alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.commands import call
from support.large_experiment import large_overrides, text_corpus
from support.pico_family import real_family


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`+experiment=llama3_500m` on a pico pair and the Python language reference."""
    folder = tmp_path_factory.mktemp("large")
    family = real_family(folder, model_type="llama", tied=False, dtype=torch.float32)
    return [
        *large_overrides(family, text_corpus(folder / "reference.jsonl")),
        "evaluation.suites=[heldout,cloze]",
        "suites.cloze.num_questions=8",
        "suites.cloze.questions_per_document=4",
        "suites.cloze.context_characters=32",  # a pico model has 64 positions
    ]


def _losses(root: Path) -> dict[str, list[float]]:
    """Loss of every step of every CPT stage, by fingerprint."""
    traces = sorted(root.glob("store/cpt/*/trace.jsonl"))
    return {
        path.parent.name: [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in traces
    }


def test_two_zero2_ranks_lose_what_one_process_loses(overrides: list[str], tmp_path: Path) -> None:
    one = call("run", *overrides, "deepspeed=off", "paths.root=one", cwd=tmp_path)
    assert one.returncode == 0, one.stdout + one.stderr
    many = call(
        "run",
        *overrides,
        "deepspeed=zero2",
        "launch.num_processes=2",
        "launch.micro_batch_rows=2",
        "paths.root=two",
        cwd=tmp_path,
    )
    assert many.returncode == 0, many.stdout + many.stderr
    single, double = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(single) == 2
    assert single.keys() == double.keys(), "how it is launched is no part of the identity"
    for fingerprint, losses in single.items():
        assert len(losses) == 8
        assert losses[-1] < losses[0]
        assert double[fingerprint] == pytest.approx(losses, abs=1e-5)
    report = Path(many.stdout.strip().splitlines()[-1].removeprefix("report: "))
    text = report.read_text(encoding="utf-8")
    assert "bits/byte" in text
    assert "cloze %" in text
    assert "a guess gets 25.0 %" in text
    (probe,) = (tmp_path / "two/store/probe").iterdir()
    assert len((probe / "questions.jsonl").read_text().splitlines()) == 8
