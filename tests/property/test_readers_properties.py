"""The same documents, whatever the kind of file, its packing, and how they are cut into files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.corpora import BadLines
from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.corpus.heldout import write_corpus
from cpt_residual.data.documents.parsing import document_line, parse_text
from cpt_residual.data.readers.base import Fields
from cpt_residual.data.readers.files import resolve_files
from cpt_residual.data.readers.local import LocalReader
from support.text_files import ROW_SUFFIXES, csv_bytes, pack, write_rows

# Everything that UTF-8 can say, with line ends, quotes, commas and marks often.
documents = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from('\n\r",\ufeff\x00\x85\u2028 ')),
    min_size=1,
).filter(lambda text: bool(text.strip()))
corpora = st.lists(documents, min_size=1, max_size=20)


@contextmanager
def folder() -> Iterator[Path]:
    """A new one for each example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def reader(place: Path, bad_lines: BadLines = "fail") -> LocalReader:
    files = resolve_files([str(place)])
    hashes = {str(path): file_sha256(path) for path in files}
    return LocalReader(files, hashes, fields=Fields("text"), bad_lines=bad_lines)


def read(place: Path) -> list[str]:
    return [record.text for record in reader(place)]


def cut(texts: Sequence[str], ends: Sequence[int]) -> list[Sequence[str]]:
    """`texts` in order as several parts, none of them empty."""
    bounds = sorted({0, len(texts), *(end % len(texts) for end in ends)})
    return [texts[a:b] for a, b in pairwise(bounds)]


@given(text=documents)
def test_a_line_of_a_corpus_is_plain_json(text: str) -> None:
    line = document_line(text)
    assert line == json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
    assert parse_text(line, "a:1") == text


@given(texts=corpora, suffix=st.sampled_from(ROW_SUFFIXES))
def test_every_kind_gives_the_documents_that_were_written(texts: list[str], suffix: str) -> None:
    with folder() as place:
        write_rows(place / f"a{suffix}", texts)
        assert read(place) == texts


@given(
    texts=corpora,
    ends=st.lists(st.integers(0, 50), max_size=4),
    suffixes=st.lists(st.sampled_from(ROW_SUFFIXES), min_size=5, max_size=5),
)
def test_shards_of_any_kind_are_read_in_the_order_of_their_names(
    texts: list[str], ends: list[int], suffixes: list[str]
) -> None:
    with folder() as place:
        for number, part in enumerate(cut(texts, ends)):
            write_rows(place / f"{number:03d}{suffixes[number]}", part)
        assert read(place) == texts


@given(texts=corpora, ends=st.lists(st.integers(0, 50), max_size=4), data=st.data())
def test_what_is_held_out_does_not_hang_on_shards_or_their_order(
    texts: list[str], ends: list[int], data: st.DataObject
) -> None:
    num_heldout = data.draw(st.integers(0, len(set(texts)) - 1))
    shuffled = data.draw(st.permutations(texts))
    with folder() as place:
        split: list[tuple[set[str], int]] = []
        for name, given_texts in (("one", texts), ("many", shuffled)):
            for number, part in enumerate(cut(given_texts, ends if name == "many" else ())):
                write_rows(place / name / f"{number}.jsonl", part)
            out = place / f"{name}_out"
            ledger = write_corpus(
                out,
                read(place / name),
                heldout_documents=num_heldout,
                seed=1,
                scratch=place / "scratch",
            )
            split.append((set(read_lines(out / "heldout.jsonl")), ledger.documents))
        assert split[0] == split[1]


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


@given(
    rows=st.lists(st.one_of(documents.map(lambda text: text), st.none()), min_size=1, max_size=20),
    suffix=st.sampled_from((".jsonl", ".jsonl.gz", ".csv", ".csv.zst")),
)
def test_skipping_conserves_rows(rows: list[str | None], suffix: str) -> None:
    """Good rows come out as they are; every bad one is counted, in its file."""
    good = [row for row in rows if row is not None]
    if not good:
        return
    with folder() as place:
        if suffix.startswith(".csv"):
            # A bad row has a field too many.
            lines = [csv_bytes({"text": [row or "x"]}).split(b"\r\n", 1)[1] for row in rows]
            bad = [
                b"a,b\r\n" if row is None else line for row, line in zip(rows, lines, strict=True)
            ]
            pack(place / f"a{suffix}", b"text\r\n" + b"".join(bad))
        else:
            write_rows(place / "x/all.jsonl", [row or "x" for row in rows])
            lines = (place / "x/all.jsonl").read_bytes().splitlines(keepends=True)
            bad = [
                b"\xff\n" if row is None else line for row, line in zip(rows, lines, strict=True)
            ]
            (place / "x/all.jsonl").unlink()
            pack(place / f"a{suffix}", b"".join(bad))
        given_reader = reader(place, "skip")
        assert [record.text for record in given_reader] == good
        ledger = given_reader.ledger()
        assert ledger.bad_rows_skipped == len(rows) - len(good)
        assert ledger.documents + ledger.bad_rows_skipped == len(rows)
        assert ledger.characters == sum(map(len, good))
