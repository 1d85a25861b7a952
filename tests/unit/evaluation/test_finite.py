"""Logits that are no numbers end an evaluation, on every way to a score; masks do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpt_residual.config.schema import Suite
from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.data.cloze.questions import Question
from cpt_residual.errors import CompatibilityError, EvaluationError
from cpt_residual.evaluation.finite import FiniteScores, NotFiniteRowError, first_bad
from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings, evaluate
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.suites.cloze import ClozeSuite
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.heldout import HeldoutSuite
from cpt_residual.suites.world import WorldSuite
from cpt_residual.weights.merge.verification import shown_stops
from support.bigram_models import write_random, write_rows

INF, NAN = math.inf, math.nan
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: question
num_fewshot: 0
metric_list:
"""
CHOICE = """  - {metric: acc, aggregation: mean, higher_is_better: true}
doc_to_target: 0
doc_to_choice: ["A", "i"]
target_delimiter: ""
"""
COPY = """  - {metric: exact_match, aggregation: mean, higher_is_better: true}
doc_to_target: answer
generation_kwargs: {until: [], max_gen_toks: 4, do_sample: false}
"""
ROLLING = """  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
doc_to_target: question
"""
SUITES: Mapping[str, tuple[Suite, str]] = {
    "heldout": (HeldoutSuite(kind="heldout", corpora=["general"], max_documents=10), "heldout_"),
    "world": (WorldSuite(kind="world", probes=["new_facts"], max_new_tokens=4), "new_facts"),
    "cloze": (
        ClozeSuite(kind="cloze", corpus="x", num_questions=1, num_distractors=1),
        "cloze_mine",
    ),
    **{
        name: (
            HarnessSuite(kind="harness", tasks=[HarnessTask(task=name, num_fewshot=0, chat=False)]),
            name,
        )
        for name in ("a_choice", "a_copy", "a_rolling")
    },
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model whose embedding of one token is NaN; "" spoils all of them."""

    def write(token: str) -> Path:
        folder = tmp_path_factory.mktemp("spoilt") / "model"
        write_random(folder, seed=3, tied=False)
        model = load_causal_lm(folder, dtype=torch.float32)
        rows = [load_tokenizer(folder).convert_tokens_to_ids(token)] if token else slice(None)
        with torch.no_grad():
            model.get_input_embeddings().weight[rows] = NAN
        model.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def all_spoilt(spoilt: Callable[[str], Path]) -> Path:
    return spoilt("")


@pytest.fixture
def given(
    inputs: EvaluationInputs, settings: EvaluationSettings, tmp_path: Path
) -> tuple[EvaluationInputs, EvaluationSettings]:
    """Stock tasks and cloze questions beside the other inputs."""
    folder, rows = tmp_path / "tasks_of_mine", tmp_path / "rows.jsonl"
    write_rows(rows, [{"question": text, "answer": "b"} for text in ("the i a", "of a is")])
    folder.mkdir()
    kinds = {
        "a_choice": ("multiple_choice", CHOICE),
        "a_copy": ("generate_until", COPY),
        "a_rolling": ("loglikelihood_rolling", ROLLING),
    }
    for name, (kind, rest) in kinds.items():
        text = TASK.format(name=name, file=rows, kind=kind) + rest
        (folder / f"{name}.yaml").write_text(text)
    question = Question(
        id=0,
        document=0,
        offset=0,
        span_kind="name",
        shape="a",
        span_documents=1,
        context="the a of i",
        choices=(" is q", " is r"),
        answer=1,
    )
    file = tmp_path / "questions.jsonl"
    file.write_text(question.model_dump_json() + "\n")
    questions = {"mine": file}
    return replace(inputs, questions=questions), replace(settings, include_paths=(folder,))


@pytest.mark.parametrize("kind", SUITES)
def test_every_way_to_a_score_stops_and_names_variant_suite_and_task(
    all_spoilt: Path, given: tuple[EvaluationInputs, EvaluationSettings], kind: str
) -> None:
    suite, task = SUITES[kind]
    with pytest.raises(EvaluationError) as caught:
        evaluate(all_spoilt, {"mine": suite}, variant="merged", inputs=given[0], settings=given[1])
    assert caught.value.what == "variant merged: the logits of the model are not finite"
    assert caught.value.problems[0].startswith(f"suite mine, task {task}")
    assert "from token 1 of" in caught.value.problems[0]
    assert str(all_spoilt) in caught.value.problems[2]


@pytest.mark.parametrize("kind", SUITES)
def test_a_sound_model_is_scored_on_every_way(
    models: Mapping[str, Path], given: tuple[EvaluationInputs, EvaluationSettings], kind: str
) -> None:
    suite, task = SUITES[kind]
    result = evaluate(
        models["random"], {"mine": suite}, variant="x", inputs=given[0], settings=given[1]
    )
    assert any(row.task.startswith(task) for row in result.rows)


def test_the_place_is_the_token_where_they_start(
    spoilt: Callable[[str], Path],
    given: tuple[EvaluationInputs, EvaluationSettings],
    tmp_path: Path,
) -> None:
    """Only the third document has the token, before its last one, which no model is given."""
    folder = spoilt("r")
    texts = ["the a of i is q", "x", "iri", "the a " * 5]
    ids = load_tokenizer(folder).encode(texts[2])
    at = 1 + ids.index(load_tokenizer(folder).convert_tokens_to_ids("r"))
    assert at == len(ids) - 1
    write_rows(tmp_path / "documents.jsonl", [{"text": text} for text in texts])
    with pytest.raises(EvaluationError) as caught:
        evaluate(
            folder,
            {"mine": SUITES["heldout"][0]},
            variant="x",
            inputs=replace(given[0], heldout={"general": tmp_path / "documents.jsonl"}),
            settings=replace(given[1], batch_size=4),
        )
    assert f"document 2: NaN or Inf from token {at} of {at} on" in caught.value.problems[0]
    assert caught.value.problems[1].endswith("ir")


def test_masks_are_no_faults() -> None:
    logits = torch.tensor([[0.0, -INF, 1.0], [-INF, -INF, 2.0]])
    assert first_bad(logits) is None
    scores = FiniteScores([3, 1])
    ids = torch.tensor([[7, 8, 9], [0, 0, 4]])
    assert scores(ids, logits) is logits


@pytest.mark.parametrize("row", [[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])
def test_nan_infinity_and_no_possible_token_are_faults(row: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, -INF], row])
    assert first_bad(logits) == 1
    with pytest.raises(NotFiniteRowError) as caught:
        FiniteScores([3, 1])(torch.tensor([[7, 8, 9], [0, 0, 4]]), logits)
    assert (caught.value.row, caught.value.ids) == (1, [4])


def test_the_check_of_a_merged_models_stops_sees_them_too(all_spoilt: Path) -> None:
    with pytest.raises(CompatibilityError, match="the logits of the model are not finite"):
        shown_stops(all_spoilt)
