"""The questions of an evaluation: real lm-eval tasks of every kind, and the world's probes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cpt_residual.config.filters import Contamination, Filters
from cpt_residual.data.filters.references import Reference
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.prompts import prompts_of, without_labels
from support.bigram_models import write_rows
from support.records import dropped, filtered, records_of

COMMON = "dataset_path: json\ndataset_kwargs: {data_files: {test: FILE}}\ntest_split: test\n"
ASKS = """
task: local_asks
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
"""
WINO = """
task: local_wino
output_type: multiple_choice
doc_to_text: "{{label}}"
doc_to_choice: "{{[begin.replace('_', 'the cup'), begin.replace('_', 'the jug')]}}"
doc_to_target: "{{end}}"
"""
ROLLING = """
task: local_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
"""
GROUP = "group: local_group\ntask: [local_asks, local_wino, local_text]\n"
ROWS = [
    {
        "question": f"How many of the {number} boats in the harbour of the old town were painted "
        "blue before the storm?",
        "answer": str(number),
        "label": "1",
        "begin": f"Nina filled {number} glasses from the jug because _",
        "end": "was still empty.",
    }
    for number in (41, 42, 43)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("asks", ASKS), ("wino", WINO), ("rolling", ROLLING)):
        yaml = text + COMMON.replace("FILE", json.dumps(str(data)))
        (tasks / f"{name}.yaml").write_text(yaml, encoding="utf-8")
    (tasks / "group.yaml").write_text(GROUP, encoding="utf-8")
    return tasks


def test_what_each_kind_of_task_asks(folder: Path) -> None:
    found = list(prompts_of(["local_group"], [], include_paths=(folder,)))
    assert Counter(each.task for each in found) == dict.fromkeys(
        ("local_asks", "local_wino", "local_text"), len(ROWS)
    )
    first = {each.task: each.text for each in reversed(found)}
    assert first["local_asks"] == ROWS[0]["question"]
    assert first["local_text"] == ROWS[0]["question"]
    assert first["local_wino"] == (
        "Nina filled 41 glasses from the jug because the cup was still empty.\n"
        "Nina filled 41 glasses from the jug because the jug was still empty."
    )


def test_a_single_task_asks_in_the_order_of_its_data(folder: Path) -> None:
    alone = list(prompts_of(["local_asks"], [], include_paths=(folder,)))
    assert [each.text for each in alone] == [row["question"] for row in ROWS]


def test_a_corpus_is_checked_for_what_the_tasks_ask(folder: Path) -> None:
    references = list(prompts_of(["local_group"], [], include_paths=(folder,)))
    leaked = f"Found on a forum: {ROWS[1]['question']} I say {ROWS[1]['answer']}."
    clean = "How many boats were in the harbour of the old town before the storm? Nobody knows."
    told = "Nina filled 43 glasses from the jug because the jug was still empty. Then she left."
    filters = Filters(contamination=Contamination(action="drop"))
    remaining, [ledger] = filtered(filters, records_of([leaked, clean, told]), references)
    assert [record.text for record in remaining] == [clean]
    assert dropped(ledger) == {"holds_a_question": 2}
    by_task = {task.task: (task.questions_found, task.documents) for task in ledger.tasks}
    assert by_task == {"local_asks": (3, 1), "local_text": (3, 1), "local_wino": (1, 1)}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Question: a b\nAnswer:", "Question: a c\nAnswer:"], ["a b", "a c"]),
        (["Q: What? A: x\n", "Q: What? A: y\n"], ["x", "y"]),
        (["Read this.\nIs it?", "Read this.\nWas it?"], ["Is it?", "Was it?"]),
        (["the same start", "the same end"], ["the same start", "the same end"]),
        (["Question: a", "Question: a"], ["Question: a", "Question: a"]),
        (["Question: a"], ["Question: a"]),
        (["Question:", "Question: a"], ["Question:", "Question: a"]),
        ([], []),
    ],
)
def test_labels_that_all_questions_have_are_not_part_of_them(
    texts: list[str], expected: list[str]
) -> None:
    assert without_labels(texts) == expected


STOCK = {
    "arc/arc_easy.yaml": {
        "question": "Which gas do plants take up from the air by day?",
        "choices": {"text": ["oxygen", "carbon dioxide"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "gsm8k/gsm8k.yaml": {"question": "Ann has 3 apples and eats 1. How many?", "answer": "2"},
    "winogrande/default.yaml": {
        "sentence": "Nina filled the glass from the jug because _ was empty.",
        "option1": "the glass",
        "option2": "the jug",
        "answer": "1",
    },
    "ifeval/ifeval.yaml": {"prompt": "Write a poem without commas.", "key": 1},
}
ASKED = {
    "arc_easy": "Which gas do plants take up from the air by day?",
    "gsm8k": "Ann has 3 apples and eats 1. How many?",
    "winogrande": "Nina filled the glass from the jug because the glass was empty.\n"
    "Nina filled the glass from the jug because the jug was empty.",
    "ifeval": "Write a poem without commas.",
}


@pytest.mark.parametrize("file", STOCK)
def test_stock_tasks_of_lm_eval_give_the_bare_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The task files are lm-eval's own, with the rows of their data sets' form in a local file."""
    import datasets
    import lm_eval

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    other = json.loads(json.dumps(STOCK[file]).replace("plants", "trees").replace("poem", "tale"))
    other = json.loads(json.dumps(other).replace("Ann", "Bob").replace("Nina", "Olga"))
    data = str(write_rows(tmp_path / "data.jsonl", [STOCK[file], other]))
    task = Path(file).stem if "/default" not in file else "winogrande"
    source = Path(lm_eval.__file__).parent / "tasks" / file
    files = json.dumps(dict.fromkeys(("train", "validation", "test"), data))
    yaml = (
        f"include: {source}\ntask: local_{task}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {files}}}\n"
    )
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(yaml, encoding="utf-8")
    monkeypatch.setattr("cpt_residual.evaluation.stock._prepare_ifeval", lambda: None)
    found = list(prompts_of([f"local_{task}"], [], include_paths=(tmp_path / "tasks",)))
    assert [each.task for each in found] == [f"local_{task}"] * 2
    assert found[0].text == ASKED[task]


def test_the_worlds_probes(tmp_path: Path) -> None:
    write_rows(tmp_path / "new_facts.jsonl", [{"prompt": "Where does Ada live?", "answer": "x"}])
    found = list(prompts_of([], ["new_facts"], probes_dir=tmp_path))
    assert found == [Reference(task="new_facts", text="Where does Ada live?")]


@pytest.mark.parametrize("here", [True, False])
def test_probes_that_are_missing_are_named(tmp_path: Path, here: bool) -> None:
    with pytest.raises(EvaluationError, match="'old_facts'"):
        list(prompts_of([], ["old_facts"], probes_dir=tmp_path if here else None))


def test_an_unknown_task_is_named(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="no task 'local_askz'"):
        list(prompts_of(["local_askz"], [], include_paths=(folder,)))
