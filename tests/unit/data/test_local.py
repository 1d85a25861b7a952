"""The user's own files: order, strictness, and messages that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.local import check_unchanged, read_local, resolve_files
from cpt_residual.data.problems import MAX_BAD_LINES, MAX_PROBLEMS
from cpt_residual.errors import CorpusError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_files_and_globs_are_sorted_and_each_read_once(tmp_path: Path) -> None:
    b = write(tmp_path, "b.jsonl", '{"text": "two"}\n{"text": "three"}')
    a = write(tmp_path, "a.txt", "one\nin one document\n")
    c = write(tmp_path, "deep/er/c.jsonl", '{"text": "four"}\n')
    patterns = [str(b), str(tmp_path / "*.jsonl"), str(tmp_path / "**/*.jsonl"), str(a)]
    files = resolve_files(patterns)
    assert files == [a, b, c]
    texts = list(read_local(files, text_field="text"))
    assert texts == ["one\nin one document\n", "two", "three", "four"]


def test_everything_wrong_with_the_files_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "corpus.jsonl", "")
    write(tmp_path, "notes.md", "x")
    patterns = ["corpus.jsnl", "corpus.jsonl", "notes.md", "*.parquet", "none/x.txt", "."]
    with pytest.raises(CorpusError) as caught:
        resolve_files([str(tmp_path / pattern) for pattern in patterns])
    assert caught.value.problems == (
        f"{tmp_path}/corpus.jsnl: no such file. Did you mean 'corpus.jsonl'?",
        f"{tmp_path}/*.parquet: no file matches",
        f"{tmp_path}/none/x.txt: no such file, and no folder {tmp_path}/none",
        f"{tmp_path}: is a folder; name its files, for example"
        f" '{tmp_path}/*.jsonl', '{tmp_path}/*.txt'",
        f"{tmp_path}/corpus.jsonl: the file is empty (0 bytes)",
        f"{tmp_path}/notes.md: unknown kind '.md'; known: .jsonl, .txt",
    )
    assert caught.value.remedy.startswith("Nothing was read.")


def test_bad_documents_of_all_files_are_collected(tmp_path: Path) -> None:
    a = write(tmp_path, "a.jsonl", b'{"text": "fine"}\n{"body": "x"}\n{"text": "caf\xe9"}\nnope\n')
    b = write(tmp_path, "b.txt", b"line one\nline \xff two")
    c = write(tmp_path, "c.txt", " \n ")
    seen: list[str] = []
    with pytest.raises(CorpusError) as caught:
        seen.extend(read_local([a, b, c], text_field="text"))
    assert caught.value.problems == (
        f"{a}:2: no field 'text'; fields present: 'body'. Known: body.",
        f"{a}:3: not UTF-8: byte 0xe9 at byte offset 44 of the file",
        f"{a}:4: not JSON: Expecting value at column 1",
        f"{b}:2: not UTF-8: byte 0xff at byte offset 14 of the file",
        f"{c}: the file holds only white space",
    )
    assert a.read_bytes()[44] == 0xE9
    assert b.read_bytes()[14] == 0xFF


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    a = write(tmp_path, "a.jsonl", mark + b'{"text": "one"}\n{"text": "two"}\n')
    b = write(tmp_path, "b.txt", mark + b"three")
    assert list(read_local([a, b], text_field="text")) == ["one", "two", "three"]
    c = write(tmp_path, "c.jsonl", mark + b'{"text": "\xe9"}\n' + mark + b'{"text": "x"}\n')
    d = write(tmp_path, "d.txt", mark + b"a\n\xff")
    e = write(tmp_path, "e.txt", mark)
    with pytest.raises(CorpusError) as caught:
        list(read_local([c, d, e], text_field="text"))
    assert caught.value.problems == (
        f"{c}:1: not UTF-8: byte 0xe9 at byte offset {c.read_bytes().index(0xE9)} of the file",
        f"{c}:2: not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1",
        f"{d}:2: not UTF-8: byte 0xff at byte offset 5 of the file",
        f"{e}: the file holds only white space",
    )


def test_lines_with_the_same_problem_are_one_entry(tmp_path: Path) -> None:
    lines = ['{"content": "x"}'] * 50 + ['{"text": 3}', '{"text": 4}', "", '{"text": "fine"}']
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    with pytest.raises(CorpusError) as caught:
        list(read_local([path], text_field="text"))
    missing, number, empty = caught.value.problems
    assert missing.startswith(f"{path}: 50 lines (1, 2, 3, 4, 5, ...): no field 'text'; fields ")
    assert number == f"{path}: 2 lines (51, 52): field 'text' is a number, not a string"
    assert empty == f"{path}:53: empty line"


def test_reading_stops_when_all_lines_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "x\n" * 3000)
    with pytest.raises(CorpusError) as caught:
        list(read_local([path], text_field="text"))
    entry, last = caught.value.problems
    assert entry.startswith(f"{path}: {MAX_BAD_LINES:,} lines (1, 2, 3, 4, 5, ...): not JSON")
    assert last == "(further problems are not listed)"


def test_reading_stops_after_so_many_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "".join(f'{{"field{n}": 1}}\n' for n in range(1000)))
    with pytest.raises(CorpusError) as caught:
        list(read_local([path], text_field="text"))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1] == "(further problems are not listed)"


def test_files_that_changed_since_they_were_pinned(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.txt", "one"), write(tmp_path, "b.txt", "two")
    pinned = {str(path): file_sha256(path) for path in (a, b)}
    check_unchanged([a, b], pinned)
    b.write_text("three")
    with pytest.raises(CorpusError, match="changed after they were pinned") as caught:
        check_unchanged([a, b], pinned)
    assert caught.value.problems[0].startswith(f"{b}: sha256 ")
    with pytest.raises(CorpusError) as caught:
        check_unchanged([a], pinned)
    assert caught.value.problems == ("1 files now, 2 when the run was planned",)


def test_a_renamed_file_is_still_the_pinned_one(tmp_path: Path) -> None:
    a = write(tmp_path, "a.txt", "one")
    pinned = {str(a): file_sha256(a)}
    check_unchanged([a.rename(tmp_path / "z.txt")], pinned)
