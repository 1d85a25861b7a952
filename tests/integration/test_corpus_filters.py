"""A corpus of one's own through all filters, as an experiment builds it: with the evaluation's
questions as an input where they are looked for, and without a trace of it where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.schema import Experiment
from cpt_residual.core.stage import ArtifactRef
from cpt_residual.data.corpus.ledger import CorpusLedger
from cpt_residual.data.filters.references import read_references
from cpt_residual.stages.execute import Builder, BuildRequest, execute

NEWS = "The council of the town of {0} met on Monday to talk about the bridge of {0}. " * 3
GERMAN = "Der Rat der Stadt {0} hat am Montag über die Brücke von {0} beraten. " * 3
FILTERS = (
    "{normalise: {}, date: {field: day, not_before: 2024-12-01}, length: {min_characters: 100}, "
    "language: {keep: [en]}, exact_dedup: {}, near_dedup: {}, "
    "contamination: {action: drop, min_words: 4}}"
)
SMALL = [
    "world.num_general_documents=300",
    "world.num_new_documents=60",
    "world.num_donor_documents=60",
    "world.num_instructions=60",
]


def _experiment(root: Path, *overrides: str) -> Experiment:
    keys = f"kind: local, part: null, files: ['{root}/news.jsonl'], heldout_documents: 2"
    corpus = f"corpora.new_domain={{{keys}}}"
    suites = "suites.world.probes=[instruction_following,old_facts]"
    return compose(
        ["+experiment=smoke", f"paths.root={root}/out", corpus, suites, *SMALL, *overrides]
    )


def _towns() -> list[str]:
    """Names with many words, so that two texts about two towns are no near copies."""
    kinds = [
        "red",
        "old",
        "small",
        "green",
        "quiet",
        "upper",
        "lower",
        "white",
        "broad",
        "early",
        "distant",
        "southern",
    ]
    things = ["house", "river", "market", "garden", "school", "station", "church", "harbour"]
    return [" and the ".join(f"{kind} {thing}" for thing in things) for kind in kinds]


def _write(root: Path, leak: str) -> None:
    quiz = f"Quiz night in the pub, and they really asked this there: {leak} I knew it at once. "
    rows = [(NEWS.format(town), "2024-12-05") for town in _towns()]
    rows += [
        (NEWS.format(_towns()[0]).replace(" ", "\r\n"), "2024-12-06"),
        (GERMAN.format("Aa"), "2024-12-06"),
        ("Too short.", "2024-12-06"),
        (NEWS.format("Old"), "2024-11-30T23:59:59Z"),
        (quiz * 2, "2025-01-01"),
    ]
    lines = [json.dumps({"text": text, "day": day}) for text, day in rows]
    (root / "news.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _build(experiment: Experiment, node: str, run_dir: Path) -> ArtifactRef:
    request = BuildRequest(experiment=experiment, node=node, run_dir=run_dir)
    return execute(request, lambda _done, _total, _unit: None).ref


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment, CorpusLedger, Path]:
    """The root, the experiment, and the ledger and folder of its corpus."""
    root = tmp_path_factory.mktemp("filters")
    _write(root, "nothing yet")
    world = _build(_experiment(root), "world", root)
    probes = (world.path / "probes" / "old_facts.jsonl").read_text(encoding="utf-8").splitlines()
    _write(root, str(json.loads(probes[0])["prompt"]))
    experiment = _experiment(root, f"corpora.new_domain.filters={FILTERS}")
    references = _build(experiment, "references", root)
    asked = list(read_references(references.path / "references.jsonl"))
    assert {each.task for each in asked} == {"instruction_following", "old_facts"}
    corpus = _build(experiment, "corpus:new_domain", root)
    ledger = CorpusLedger.model_validate_json((corpus.path / "ledger.json").read_bytes())
    return root, experiment, ledger, corpus.path


def test_each_pass_takes_what_it_should_and_counts_it(
    built: tuple[Path, Experiment, CorpusLedger, Path],
) -> None:
    _, _, ledger, folder = built
    taken = {each.name: each.documents_in - each.documents_out for each in ledger.filters}
    assert taken == {
        "normalise": 0,
        "date": 1,
        "length": 1,
        "language": 1,
        "exact_dedup": 1,
        "near_dedup": 0,
        "contamination": 1,
    }
    assert ledger.documents_read == 17
    assert (ledger.documents, ledger.heldout_documents) == (10, 2)
    files = [folder / name for name in ("documents.jsonl", "heldout.jsonl")]
    texts = [json.loads(line)["text"] for f in files for line in f.read_text().splitlines()]
    assert sorted(texts) == sorted(NEWS.format(town) for town in _towns())


def test_the_report_names_the_task_and_the_words(
    built: tuple[Path, Experiment, CorpusLedger, Path],
) -> None:
    _, _, ledger, _ = built
    by_task = {task.task: task for task in ledger.filters[-1].tasks}
    assert set(by_task) == {"instruction_following", "old_facts"}
    found = by_task["old_facts"]
    assert found.documents == 1
    assert found.questions_found >= 1
    assert found.examples[0].document == 13


def test_the_same_experiment_gives_the_same_bytes(
    built: tuple[Path, Experiment, CorpusLedger, Path], tmp_path: Path
) -> None:
    root, experiment, _, folder = built
    again = experiment.model_copy(
        update={"paths": experiment.paths.model_copy(update={"root": str(tmp_path / "out")})}
    )
    for node in ("world", "references", "corpus:new_domain"):
        ref = _build(again, node, root)
    names = ("documents.jsonl", "heldout.jsonl", "ledger.json")
    assert [(ref.path / n).read_bytes() for n in names] == [
        (folder / n).read_bytes() for n in names
    ]


def test_only_a_corpus_that_is_checked_depends_on_the_evaluation(
    built: tuple[Path, Experiment, CorpusLedger, Path],
) -> None:
    root, experiment, _, _ = built
    fewer = "suites.world.probes=[old_facts]"
    plain, other = (Builder.of(_experiment(root, *more)).graph for more in ([], [fewer]))
    assert "references" not in {node.stage.node for node in plain.nodes}
    assert plain["corpus:new_domain"].inputs == {}
    assert plain["corpus:new_domain"].fingerprint == other["corpus:new_domain"].fingerprint
    checked = Builder.of(experiment).graph
    fewer_checked = Builder.of(
        _experiment(root, f"corpora.new_domain.filters={FILTERS}", fewer)
    ).graph
    assert checked["corpus:new_domain"].inputs == {"references": "references"}
    assert checked["pack:cpt"].fingerprint != fewer_checked["pack:cpt"].fingerprint
