"""Stock tasks: finding them, what is checked before anything runs, and one run of local ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation import stock
from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings, evaluate
from cpt_residual.evaluation.stock import fetch_task_data, find_stock_task, load_tasks
from cpt_residual.suites.harness import HarnessSuite
from support.bigram_models import write_bigram, write_rows

COPY = """
task: local_copy
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {until: UNTIL, max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - name: first
    filter: [{function: take_first}]
metadata: {version: 2.0}
"""
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_target: 0
doc_to_choice: ["A", "b"]
target_delimiter: ""
num_fewshot: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TEXT = """
task: local_text
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
num_fewshot: 0
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
GROUP = """
group: local_group
task: [local_choice]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = write_rows(
        tmp_path / "data.jsonl",
        [{"question": "one", "answer": "A"}, {"question": "two", "answer": "B"}],
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("copy", COPY), ("choice", CHOICE), ("text", TEXT), ("group", GROUP)):
        yaml = text.replace("FILE", str(data)).replace("UNTIL", '["AA", "<|user|>"]')
        (tasks / f"{name}.yaml").write_text(yaml, encoding="utf-8")
    return tasks


def test_data_can_be_fetched_ahead(folder: Path, tmp_path: Path) -> None:
    tasks = [HarnessTask(task="local_copy"), HarnessTask(task="local_group", limit=1)]
    asked = [*tasks, tasks[0]]
    assert list(fetch_task_data(asked, (folder,))) == ["local_copy", "local_group"]
    assert any((tmp_path / "cache").iterdir())
    (tmp_path / "data.jsonl").unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(EvaluationError, match="data of task local_copy cannot be loaded"):
        list(fetch_task_data(asked, (folder,)))


def _suite(*tasks: HarnessTask) -> dict[str, HarnessSuite]:
    return {"stock": HarnessSuite(kind="harness", tasks=list(tasks))}


def test_local_tasks_run_through_the_same_adapter(
    folder: Path, models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    result = evaluate(
        models["closes"],
        _suite(
            HarnessTask(task="local_copy"), HarnessTask(task="local_group", chat=False, limit=1)
        ),
        variant="closes",
        inputs=inputs,
        settings=replace(settings, include_paths=(folder,)),
    )
    rows = {(row.task, row.metric): row for row in result.rows}
    assert set(rows) == {
        ("local_copy", "exact_match,first"),
        ("local_copy", "closed_share"),
        ("local_choice", "acc"),
        ("local_group", "acc"),
    }
    assert rows["local_copy", "exact_match,first"].value == 0.5
    assert rows["local_copy", "exact_match,first"].stderr == pytest.approx(0.5)
    assert rows["local_copy", "closed_share"].value == 1
    assert rows["local_group", "acc"].n == rows["local_choice", "acc"].n == 1
    facts = result.facts["tasks"]
    assert (facts["local_copy"]["chat"], facts["local_choice"]["chat"]) == (True, False)
    assert facts["local_choice"]["limit"] == 1
    assert len(facts["local_copy"]["scorer_sha256"]) == 64
    assert result.facts["groups"] == {"local_group": ["local_choice"]}  # pairs its prompts
    choice = [sample for sample in result.samples if sample.task == "local_choice"]
    assert [(s.stop_reason, s.num_tokens, s.response) for s in choice] == [(None, None, None)]


def test_likelihood_of_stock_text_says_over_how_much_it_is_spread(
    folder: Path, models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    result = evaluate(
        models["random"],
        _suite(HarnessTask(task="local_text", chat=False)),
        variant="random",
        inputs=inputs,
        settings=replace(settings, include_paths=(folder,)),
    )
    facts = result.facts["tasks"]["local_text"]
    assert (facts["num_bytes"], facts["num_words"]) == (len("one") + len("two"), 2)
    assert {(row.metric, row.n) for row in result.rows} == {
        ("word_perplexity", 2),
        ("bits_per_byte", 2),
    }


def test_a_stop_string_is_cut_and_named(
    folder: Path, models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    result = evaluate(
        models["runs_on"],
        _suite(HarnessTask(task="local_copy")),
        variant="runs_on",
        inputs=inputs,
        settings=replace(settings, include_paths=(folder,)),
    )
    assert {(s.stop_reason, s.num_tokens, s.response) for s in result.samples} == {("AA", 2, "")}
    assert result.value("local_copy", "closed_share") == 0


def test_a_special_token_as_stop_string_stops(
    folder: Path,
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    asks = write_bigram(tmp_path / "asks", {"<|assistant|>": "A", "A": "<|user|>"}, otherwise="A")
    result = evaluate(
        asks,
        _suite(HarnessTask(task="local_copy")),
        variant="asks",
        inputs=inputs,
        settings=replace(settings, include_paths=(folder,)),
    )
    assert {(s.stop_reason, s.response) for s in result.samples} == {("<|user|>", "A")}


def test_a_task_is_found_without_reading_all_of_lm_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_prepare_ifeval", lambda: None)
    found = find_stock_task(HarnessTask(task="ifeval"))
    assert found.data_sets == ("google/IFEval",)
    assert len(found.manager.all_tasks) < 100
    arc = find_stock_task(HarnessTask(task="arc_challenge", num_fewshot=25))
    assert arc.data_sets == ("allenai/ai2_arc (ARC-Challenge)",)


def test_an_unknown_task_gets_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(task_index={}, all_tasks=["ifeval", "gsm8k"])
    tasks = SimpleNamespace(TaskManager=lambda **_: known, __file__=str(Path(stock.__file__)))
    monkeypatch.setattr(stock, "lazy_import", lambda _: tasks)
    with pytest.raises(EvaluationError, match=r"no task 'if_eval'\. Did you mean 'ifeval'\?"):
        find_stock_task(HarnessTask(task="if_eval"))


def test_examples_that_the_task_would_ignore_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_prepare_ifeval", lambda: None)
    with pytest.raises(EvaluationError, match="would ignore num_fewshot=5"):
        find_stock_task(HarnessTask(task="ifeval", num_fewshot=5))


def test_missing_nltk_data_is_found_before_anything_is_generated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nltk

    def find(_name: str) -> None:
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", find)
    with pytest.raises(EvaluationError, match=r"punkt_tab[\s\S]*python -m nltk\.downloader"):
        find_stock_task(HarnessTask(task="ifeval"))


def test_langdetect_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    import langdetect
    import nltk

    monkeypatch.setattr(nltk.data, "find", lambda _name: "found")
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", None)
    find_stock_task(HarnessTask(task="ifeval"))
    assert langdetect.DetectorFactory.seed == 0


@pytest.mark.parametrize(
    "error", [ConnectionError("no route to host"), ValueError("Couldn't find cache for x")]
)
def test_data_that_cannot_be_loaded_is_named(error: Exception) -> None:
    def load(_names: list[str]) -> None:
        raise error

    with pytest.raises(EvaluationError) as caught:
        load_tasks(SimpleNamespace(load=load), ["gsm8k"], ["openai/gsm8k (main)"])
    message = str(caught.value)
    assert "The data of task gsm8k cannot be loaded." in message
    assert "data set: openai/gsm8k (main)" in message
    assert str(error) in message
    assert "load_dataset('openai/gsm8k')" in message


def test_other_errors_of_a_task_are_not_taken_for_missing_data() -> None:
    def load(_names: list[str]) -> None:
        raise ValueError("Duplicate task")

    with pytest.raises(ValueError, match="Duplicate"):
        load_tasks(SimpleNamespace(load=load), ["gsm8k"])


@pytest.mark.slow
def test_lm_evals_whole_list_is_searched_for_an_unknown_task() -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with pytest.raises(EvaluationError, match=r"'hellaswagg'\. Did you mean 'hellaswag'\?"):
        find_stock_task(HarnessTask(task="hellaswagg"))
