"""Streaming from the hub, with a folder in the place of a repository: no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import datasets
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpt_residual.config.corpora import HubCorpus
from cpt_residual.data.readers.base import Fields
from cpt_residual.data.readers.hub import HubReader
from cpt_residual.errors import CorpusError

REVISION = "0123456789" * 4
PLACE = "org/data[train]@012345678901"


def corpus(**changes: object) -> HubCorpus:
    fields = {"kind": "hub", "repo": "org/data", "revision": REVISION, "max_characters": 100}
    return HubCorpus.model_validate(fields | changes)


def reader(given: HubCorpus, date: str | None = None) -> HubReader:
    return HubReader(given, fields=Fields(given.text_field, date))


def texts(given: HubCorpus) -> list[str]:
    return [record.text for record in reader(given)]


def hub_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rows: list[dict[str, object]]
) -> list[dict[str, object]]:
    """A hub with one data set, `org/data`; returns the list of what is asked of it."""
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    real, calls = datasets.load_dataset_builder, list[dict[str, object]]()

    def load(path: str, **options: Any) -> object:
        calls.append({"path": path, **options})
        builder = real(str(folder), name=None)
        builder.hash = REVISION
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return calls


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", load)


def test_documents_come_in_order_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hub_of(monkeypatch, tmp_path, [{"body": letter * 30, "id": 1} for letter in "abcde"])
    given = reader(corpus(text_field="body", config="en"))
    assert [record.text for record in given] == ["a" * 30, "b" * 30, "c" * 30]
    assert (given.ledger().documents, given.ledger().characters) == (3, 90)
    # `hf://` keeps local folders and built-in formats of the same name out.
    assert calls == [{"path": "hf://datasets/org/data", "name": "en", "revision": REVISION}]


def test_the_date_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, tmp_path, [{"text": "x", "created": "2024-05-06"}])
    (record,) = reader(corpus(), date="created")
    assert (record.date, record.place) == ("2024-05-06T00:00:00", f"{PLACE} row 1")


def test_fields_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, tmp_path, [{"content": {"text": "x"}, "meta": {"day": "soon"}}])
    (record,) = reader(corpus(text_field="content.text"), date="meta.day")
    assert (record.text, record.date) == ("x", "soon")


def test_a_missing_field_names_the_row_and_the_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of(monkeypatch, tmp_path, [{"content": "x", "id": 1}, {"content": "y", "id": 2}])
    with pytest.raises(CorpusError) as caught:
        texts(corpus())
    assert caught.value.problems == tuple(
        f"{PLACE} row {row}: no field 'text'; fields present: 'content', 'id'."
        " Did you mean 'content'?"
        for row in (1, 2)
    )
    with pytest.raises(CorpusError) as caught:
        texts(corpus(bad_lines="skip"))
    assert len(caught.value.problems) == 2, "skipping is not for the wrong field"


def test_bad_rows_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, tmp_path, [{"text": "x"}, {"text": " "}, {"text": "y"}])
    with pytest.raises(CorpusError, match="some documents cannot be used"):
        texts(corpus())
    given = reader(corpus(bad_lines="skip"))
    assert [record.text for record in given] == ["x", "y"]
    assert given.ledger().bad_rows_skipped == 1
    assert given.ledger().first_bad_rows == (f"{PLACE} row 2: field 'text' is empty",)


def test_nothing_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, tmp_path, [{"text": "x" * 101}])
    with pytest.raises(CorpusError, match="gave no document") as caught:
        texts(corpus())
    assert "max_characters (100)" in caught.value.remedy


def test_another_commit_from_the_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of(monkeypatch, tmp_path, [{"text": "x"}])
    with pytest.raises(CorpusError, match="not the commit that is pinned") as caught:
        texts(corpus(revision="a" * 40))
    assert caught.value.problems[1].startswith(f"found:  {REVISION}")


def test_a_date_that_python_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = cast("Any", pa), cast("Any", pq)
    year_30000 = arrow.array([0, 884_541_340_800_000_000], type=arrow.timestamp("us"))
    table = arrow.table({"text": ["fine", "far away"], "date": year_30000})
    parquet.write_table(table, tmp_path / "train.parquet")
    real = cast("Any", datasets).load_dataset_builder

    def load(*_: object, **__: object) -> object:
        builder = real(str(tmp_path), name=None)
        builder.hash = REVISION
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(CorpusError, match="cannot be read") as caught:
        texts(corpus())
    assert "a date or number that Python cannot hold" in caught.value.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("no route to host"), "--prefetch"),
        (httpx2.ConnectError("no route to host"), "--prefetch"),
        (ValueError("Unknown split"), "Check repo, config, split"),
        (RuntimeError("Dataset scripts are no longer supported"), "no code of its own"),
        (FileNotFoundError("no such data set"), "Check repo"),
        (
            datasets.exceptions.DatasetNotFoundError("Revision 'x' doesn't exist"),
            "changed since it was pinned",
        ),
        (datasets.exceptions.DatasetGenerationError("broken file"), "Check repo"),
    ],
)
def test_what_the_hub_refuses_is_a_corpus_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    refuse(monkeypatch, error)
    with pytest.raises(CorpusError, match="cannot be read") as caught:
        texts(corpus(config="en"))
    assert caught.value.problems == (f"{type(error).__name__}: {error}",)
    assert "org/data/en[train]@012345678901" in str(caught.value)
    assert remedy in caught.value.remedy
