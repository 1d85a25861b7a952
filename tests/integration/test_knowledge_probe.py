"""From a local corpus to a score: a model that has read the text knows what is asked, and a model
that has read as much of the same kind does not."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cpt_residual.config.corpora import LocalCorpus
from cpt_residual.config.schema import Launch
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import ArtifactRef, Metrics, RunContext, Stage
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.results import read_results, read_samples
from cpt_residual.modeling.chat import install_chat_side
from cpt_residual.modeling.initialise import write_initial_model
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.evaluate import Evaluate
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.probe import Probe
from cpt_residual.suites.cloze import ClozeSuite
from cpt_residual.suites.heldout import HeldoutSuite
from support.packs import write_texts
from support.rare_spans import records
from support.stages import TextStage
from support.training import PICO

NUM_DOCUMENTS = 48
SUITE = ClozeSuite(
    kind="cloze", corpus="new", references=["old"], num_questions=32, context_characters=120
)
ARCHITECTURE = PICO.model_copy(
    update={
        "vocab_size": 360,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 96,
        "initializer_range": 0.05,
    }
)


@dataclass(frozen=True)
class Lab:
    """Artifacts by node, and the probe's stage."""

    paths: Mapping[str, Path]
    probe: Probe


def refs(stage: Stage, paths: Mapping[str, Path]) -> dict[str, ArtifactRef]:
    return {
        role: ArtifactRef(given.name, given.node, "f", "c", paths[given.node], {})
        for role, given in stage.inputs().items()
    }


def build(stage: Stage, paths: Mapping[str, Path], work: Path) -> Metrics:
    work.mkdir(parents=True)
    return stage.build(refs(stage, paths), work, RunContext(run_dir=work))


def corpus(key: str, folder: Path, *, seed: int, heldout: int) -> Corpus:
    folder.mkdir(exist_ok=True)
    file = write_texts(folder / f"{key}.jsonl", records(NUM_DOCUMENTS + heldout, seed=seed))
    config = LocalCorpus(kind="local", files=[str(file)], heldout_documents=heldout)
    return Corpus(key, config, {str(file): file_sha256(file)}, 0)


def train(folder: Path, start: Path, documents: Path, *, steps: int = 150) -> Path:
    """A copy of `start` that has read `documents` many times."""
    tokenizer, model = load_tokenizer(start), load_causal_lm(start, dtype=torch.float32)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model is many times slower with two
    for _ in range(steps):
        rows = torch.randperm(len(texts))[:16]
        loss = model(
            input_ids=batch["input_ids"][rows],
            attention_mask=batch["attention_mask"][rows],
            labels=labels[rows],
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    shutil.copytree(start, folder)
    model.save_pretrained(folder)
    install_chat_side(start, folder)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    new = corpus("new", root / "texts", seed=1, heldout=6)
    old = corpus("old", root / "texts", seed=2, heldout=0)
    for stage in (new, old):
        build(stage, {}, root / stage.node)
    paths = {stage.node: root / stage.node / "out" for stage in (new, old)}
    inputs = {
        "new": CorpusInput(new, "documents.jsonl", "heldout.jsonl"),
        "old": CorpusInput(old, "documents.jsonl"),
    }
    probe = Probe("cloze", SUITE, inputs, 0)
    build(probe, paths, root / "probe")
    start = root / "start"
    texts = records(40, seed=9)
    write_initial_model(start, architecture=ARCHITECTURE, texts=texts, seed=0)
    models = {
        name: train(root / name, start, paths[f"corpus:{key}"] / "documents.jsonl")
        for name, key in (("read", "new"), ("unread", "old"))
    }
    return Lab({**paths, "probe:cloze": root / "probe" / "out", **models}, probe)


def evaluation(lab: Lab, variant: str, **changes: object) -> Evaluate:
    settings: dict[str, object] = {
        "variant": variant,
        "model": TextStage(variant),
        "template": TextStage("read"),
        "base": TextStage("unread"),
        "suites": {"cloze": SUITE},
        "corpora": {},
        "world": None,
        "seed": 0,
        "launch": Launch(device="cpu"),
        "probes": {"cloze": lab.probe},
    }
    return Evaluate(**(settings | changes))  # pyright: ignore[reportArgumentType]


def test_who_has_read_the_text_knows_it(lab: Lab, tmp_path: Path) -> None:
    scores: dict[str, Metrics] = {}
    for variant in ("read", "unread"):
        stage = evaluation(lab, variant)
        scores[variant] = build(stage, lab.paths, tmp_path / variant)
    read, unread = scores["read"], scores["unread"]
    assert read["cloze/chance"] == unread["cloze/chance"] == 0.25
    assert read["cloze/accuracy"] > 0.85
    assert 0.05 < unread["cloze/accuracy"] < 0.55
    assert read["cloze/recalled"] > 0.7
    assert unread["cloze/recalled"] == 0
    assert read["cloze/target_bits_per_byte"] < unread["cloze/target_bits_per_byte"] / 3
    rows = {row.metric: row for row in read_results(tmp_path / "read" / "out")}
    assert {row.n for row in rows.values()} == {32}
    assert all(row.stderr is not None for row in rows.values())
    assert {row.variant for row in rows.values()} == {"read"}
    facts = json.loads((tmp_path / "read" / "out" / "evaluation.json").read_text())
    assert facts["tasks"]["cloze"]["chat"] is False
    assert facts["tasks"]["cloze"]["num_documents"] == 32


def test_the_likelihood_is_that_of_the_document_as_it_was_trained_on(
    lab: Lab, tmp_path: Path
) -> None:
    build(evaluation(lab, "read"), lab.paths, tmp_path / "e")
    sample = read_samples(tmp_path / "e" / "out")[0]
    question = json.loads((lab.paths["probe:cloze"] / "questions.jsonl").read_text().split("\n")[0])
    target = question["choices"][question["answer"]]
    tokenizer = load_tokenizer(lab.paths["read"])
    ids = torch.tensor([tokenizer(question["context"] + target)["input_ids"]])
    given = len(tokenizer(question["context"])["input_ids"])
    with torch.inference_mode():
        model = load_causal_lm(lab.paths["read"], dtype=torch.float32).eval()
        scores = model(ids[:, :-1]).logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0]
    nats, num_bytes = sample.metrics["target_bits_per_byte"]
    assert nats == pytest.approx(float(scores[given - 1 :].sum()), rel=1e-4)
    assert num_bytes == len(target.encode())


def test_one_probe_for_all_variants_and_beside_other_suites(lab: Lab, tmp_path: Path) -> None:
    suites = {
        "heldout": HeldoutSuite(kind="heldout", corpora=["new"], max_documents=4),
        "cloze": SUITE,
    }
    stage = evaluation(lab, "read", suites=suites, corpora=lab.probe.corpora)
    assert stage.inputs()["probe:cloze"] is lab.probe
    metrics = build(stage, lab.paths, tmp_path / "both")
    alone = build(evaluation(lab, "read"), lab.paths, tmp_path / "alone")
    assert {key: value for key, value in metrics.items() if key.startswith("cloze")} == alone
    assert "heldout_new/bits_per_byte" in metrics


def test_nothing_of_the_held_out_documents_is_asked(lab: Lab) -> None:
    corpus, probe = lab.paths["corpus:new"], lab.paths["probe:cloze"]
    training, heldout = (
        [json.loads(line)["text"] for line in (corpus / name).read_text().splitlines()]
        for name in ("documents.jsonl", "heldout.jsonl")
    )
    assert (len(training), len(heldout)) == (NUM_DOCUMENTS, 6)
    for line in (probe / "questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        target = question["choices"][question["answer"]]
        assert f"{question['context']}{target}" in training[question["document"]]
        assert not any(target in text for text in heldout)


def test_identity(lab: Lab) -> None:
    plain = evaluation(lab, "read", suites={}, probes={})
    assert evaluation(lab, "read").recipe().scorer_sha256 != plain.recipe().scorer_sha256
    probe = lab.probe
    more = SUITE.model_copy(update={"num_questions": 33})
    other = Probe("cloze", more, probe.corpora, 0)
    assert probe.recipe().unicode == unicodedata.unidata_version
    assert other.recipe() != probe.recipe() != Probe("cloze", SUITE, probe.corpora, 1).recipe()
    assert Probe("renamed", SUITE, probe.corpora, 0).recipe() == probe.recipe()
    assert probe.recipe().references == {"old": "documents.jsonl", "held-out new": "heldout.jsonl"}
    assert set(probe.inputs()) == {"corpus:new", "corpus:old"}
    assert probe.cost().seconds > 0 < probe.resources().memory_bytes


def test_nothing_to_compare_with_is_an_error(lab: Lab) -> None:
    alone = SUITE.model_copy(update={"references": [], "heldout_is_reference": False})
    with pytest.raises(ConfigError, match="nothing to tell new knowledge from old"):
        Probe("cloze", alone, lab.probe.corpora, 0).recipe()
