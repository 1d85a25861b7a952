from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings
from support.bigram_models import write_bigram, write_random, write_rows


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models that answer `A` and close, run into the document separator, never stop; two random."""
    root = tmp_path_factory.mktemp("models")
    return {
        "closes": write_bigram(
            root / "closes", {"<|assistant|>": "A", "A": "<|end|>"}, otherwise="A"
        ),
        "separates": write_bigram(
            root / "separates", {"<|assistant|>": "A", "A": "<|endoftext|>"}, otherwise="A"
        ),
        "runs_on": write_bigram(root / "runs_on", {}, otherwise="A"),
        "random": write_random(root / "random", seed=1),
        "random_2": write_random(root / "random_2", seed=2),
    }


def probe(prompt: str, answer: str, *checks: Mapping[str, object]) -> dict[str, object]:
    return {
        "prompt": prompt,
        "checks": list(checks),
        "answer": answer,
        "distractors": ["b" if answer == "a" else "a"],
        "type": "+".join(str(check["kind"]) for check in checks),
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three instruction probes, two fact probes, four held-out documents."""
    root = tmp_path_factory.mktemp("world")
    upper = {"kind": "upper", "arguments": {}}
    lower = {"kind": "lower", "arguments": {}}
    word = {"kind": "one_word", "arguments": {}}
    rows = [
        probe("Say a.", "a", upper),
        probe("Say b softly.", "b", lower),
        probe("Say a in one word, please.", "a", upper, word),
    ]
    write_rows(root / "probes" / "instruction_following.jsonl", rows)
    facts = [
        {"prompt": "What is a?", "answer": "A", "distractors": ["b"]},
        {"prompt": "What is b?", "answer": "b", "distractors": ["A"]},
    ]
    write_rows(root / "probes" / "new_facts.jsonl", facts)
    texts = ["the a of i is q", "naïve <|end|> b", "x", "the b of j is r " * 30]
    write_rows(root / "heldout.jsonl", ({"text": text} for text in texts))
    return root


@pytest.fixture
def inputs(models: Mapping[str, Path], world: Path) -> EvaluationInputs:
    return EvaluationInputs(
        template_dir=models["closes"],
        probes_dir=world / "probes",
        heldout={"general": world / "heldout.jsonl"},
    )


@pytest.fixture
def settings(tmp_path: Path) -> EvaluationSettings:
    return EvaluationSettings(scratch=tmp_path, batch_size=2)
