"""Streaming from the hub, with a folder in the place of a repository: no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from cpt_residual.config.corpora import HubCorpus
from cpt_residual.data.hub import read_hub
from cpt_residual.errors import CorpusError

REVISION = "0123456789" * 4


def corpus(repo: Path | str, **changes: object) -> HubCorpus:
    fields = {"kind": "hub", "repo": str(repo), "revision": REVISION, "max_characters": 100}
    return HubCorpus.model_validate(fields | changes)


def repository(folder: Path, rows: list[dict[str, object]]) -> Path:
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def test_documents_come_in_order_up_to_the_limit(tmp_path: Path) -> None:
    repo = repository(tmp_path, [{"body": letter * 30, "id": 1} for letter in "abcde"])
    texts = list(read_hub(corpus(repo, text_field="body")))
    assert texts == ["a" * 30, "b" * 30, "c" * 30]


def test_the_data_set_is_pinned_and_streamed_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def load(repo: str, **options: object) -> list[dict[str, str]]:
        calls.append({"repo": repo, **options})
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_hub(corpus("some/data", config="en"))) == ["x"]
    assert calls == [
        {
            "repo": "some/data",
            "name": "en",
            "split": "train",
            "revision": REVISION,
            "streaming": True,
        }
    ]


def test_a_missing_field_names_the_row_and_the_fields(tmp_path: Path) -> None:
    repo = repository(tmp_path, [{"content": "x", "id": 1}, {"content": "y", "id": 2}])
    with pytest.raises(CorpusError) as caught:
        list(read_hub(corpus(repo)))
    assert caught.value.problems == tuple(
        f"{repo}[train]@012345678901 row {row}: no field 'text'; fields present: 'content', 'id'."
        " Did you mean 'content'?"
        for row in (1, 2)
    )


def failing(error: Exception) -> Callable[..., object]:
    def load(*_: object, **__: object) -> object:
        raise error

    return load


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route to host"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported"),
        FileNotFoundError("no such data set"),
    ],
)
def test_what_the_hub_refuses_is_a_corpus_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", failing(error))
    with pytest.raises(CorpusError, match="cannot be read") as caught:
        list(read_hub(corpus("some/data", config="en")))
    assert caught.value.problems == (f"{type(error).__name__}: {error}",)
    assert "some/data/en[train]@012345678901" in str(caught.value)
