"""The user's own files: every kind, strictness, and messages that name the place."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cpt_residual.config.corpora import BadLines
from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.documents.problems import MAX_BAD_LINES, MAX_PROBLEMS
from cpt_residual.data.filters.date_range import day_of
from cpt_residual.data.readers.base import Fields
from cpt_residual.data.readers.local import LocalReader
from cpt_residual.errors import CorpusError
from support.text_files import ROW_SUFFIXES, pack, write_rows

TEXTS = ["naïve 日本\nsecond line", 'with "quotes", commas\r\nand \N{MUSICAL SYMBOL G CLEF}', " x "]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    return pack(folder / name, content.encode() if isinstance(content, str) else content)


def reader(
    *files: Path, field: str = "text", date: str | None = None, bad_lines: BadLines = "fail"
) -> LocalReader:
    hashes = {str(path): file_sha256(path) for path in files}
    return LocalReader(files, hashes, fields=Fields(field, date), bad_lines=bad_lines)


def texts(*files: Path, **options: Any) -> list[str]:
    return [record.text for record in reader(*files, **options)]


def problems(*files: Path, **options: Any) -> Sequence[str]:
    """What is said; no document may come once something is wrong."""
    with pytest.raises(CorpusError) as caught:
        texts(*files, **options)
    return caught.value.problems


class TestEveryKind:
    @pytest.mark.parametrize("suffix", ROW_SUFFIXES)
    def test_rows(self, tmp_path: Path, suffix: str) -> None:
        path = write_rows(tmp_path / f"a{suffix}", TEXTS * 200, field="body")
        given = reader(path, field="body")
        assert [record.text for record in given] == TEXTS * 200
        (file,) = given.ledger().files
        assert (file.kind, file.documents, file.bad_rows_skipped) == (suffix, 600, 0)
        assert file.characters == sum(map(len, TEXTS)) * 200
        assert file.sha256 == file_sha256(path)

    @pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst"])
    def test_a_text_file_is_one_document(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path, f"a{suffix}", "one\nin one document\n")
        assert texts(path) == ["one\nin one document\n"]

    @pytest.mark.parametrize("suffix", ROW_SUFFIXES)
    def test_dates(self, tmp_path: Path, suffix: str) -> None:
        dates = ["2024-01-02", "2025-06-07T08:09:10Z", "soon"]
        path = write_rows(tmp_path / f"a{suffix}", TEXTS, dates=dates)
        assert [record.date for record in reader(path, date="date")] == dates
        assert [record.date for record in reader(path)] == [None] * 3

    def test_parquet_dates_and_numbers_become_text(self, tmp_path: Path) -> None:
        day = pa.array([19_000, None], pa.date32())
        year = pa.array([2024, 2025], pa.int16())
        path = tmp_path / "a.parquet"
        parquet.write_table(pa.table({"text": ["a", "b"], "day": day, "year": year}), path)
        assert [record.date for record in reader(path, date="day")] == ["2022-01-08", None]
        assert [record.date for record in reader(path, date="year")] == ["2024", "2025"]

    @pytest.mark.parametrize(
        "kind",
        [
            *(pa.string(), pa.large_string(), pa.string_view()),
            *(pa.binary(), pa.large_binary(), pa.binary_view()),
            *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.binary())),
        ],
        ids=str,
    )
    def test_parquet_text_of_every_type(self, tmp_path: Path, kind: pa.DataType) -> None:
        values = ["x", "naïve 日本", "x"]
        if pa.types.is_dictionary(kind):
            column = pa.array(values, kind.value_type).dictionary_encode()
        else:
            column = pa.array(values).cast(kind)
        parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert texts(tmp_path / "a.parquet") == values

    def test_parquet_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pa.table({"text": [b"fine", b"caf\xe9", b" "]}), path)
        assert problems(path) == (
            f"{path} row 2: field 'text' is not UTF-8: byte 0xe9 at byte 3 of the field",
            f"{path} row 3: field 'text' is empty",
        )

    def test_parquet_shards_without_a_value(self, tmp_path: Path) -> None:
        """What writers make of a column in which nothing is known but nulls."""
        for name, table in (
            ("a", pa.table({"text": ["x"]})),
            ("b", pa.table({"text": pa.nulls(2)})),
            ("c", pa.table({"text": pa.nulls(0)})),
        ):
            parquet.write_table(table, tmp_path / f"{name}.parquet")
        files = [tmp_path / f"{name}.parquet" for name in "abc"]
        given = reader(*files, bad_lines="skip")
        assert [record.text for record in given] == ["x"]
        assert [file.bad_rows_skipped for file in given.ledger().files] == [0, 2, 0]
        assert texts(files[0], files[2]) == ["x"]
        assert problems(*files) == (
            f"{files[1]}: 2 rows (1, 2): field 'text' is null, not a string",
        )

    def test_fields_of_objects(self, tmp_path: Path) -> None:
        rows = [{"meta": {"day": f"2024-01-0{n}"}, "content": {"text": f"t{n}"}} for n in (1, 2)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        a, b = write(tmp_path, "a.jsonl", lines), tmp_path / "b.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), b)
        for path in (a, b):
            records = list(reader(path, field="content.text", date="meta.day"))
            assert [(r.text, r.date) for r in records] == [
                ("t1", "2024-01-01"),
                ("t2", "2024-01-02"),
            ]
        c = write(tmp_path, "c.jsonl", '{"content": {"text": "in"}, "content.text": "whole"}\n')
        d, e = tmp_path / "d.parquet", write(tmp_path, "e.csv", "content.text\nwhole\n")
        parquet.write_table(pa.table({"content": [{"text": "in"}], "content.text": ["whole"]}), d)
        assert texts(c, d, e, field="content.text") == ["whole"] * 3, "the name before the path"

    def test_fields_of_objects_that_are_not_there(self, tmp_path: Path) -> None:
        rows = '{"content": null}\n{"content": {"txt": "x"}, "n": 1}\n{"content": "x"}\n'
        a = write(tmp_path, "a.jsonl", rows)
        b, c = tmp_path / "b.parquet", tmp_path / "c.parquet"
        parquet.write_table(pa.table({"content": [None, {"text": None}, {"text": "x"}]}), b)
        parquet.write_table(pa.table({"content": [{"txt": "x"}], "list": [["x"]]}), c)
        assert problems(a, b, c, field="content.text") == (
            f"{a}:1: field 'content.text' is null, not a string",
            f"{a}:2: no field 'content.text'; fields present: 'content.txt', 'n'."
            " Did you mean 'content.txt'?",
            f"{a}:3: no field 'content.text'; fields present: 'content'. Did you mean 'content'?",
            f"{b}: 2 rows (1, 2): field 'content.text' is null, not a string",
            f"{c}: no column 'content.text'; columns: 'content.txt', 'list'."
            " Did you mean 'content.txt'?",
        )
        assert problems(c, field="list.element")[0].startswith(f"{c}: no column 'list.element'; ")

    def test_files_of_no_bytes(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{n}{kind}" for n, kind in enumerate((".csv", ".jsonl", ".txt"))]
        for path in files:
            path.touch()
        files += [write(tmp_path, f"empty{kind}", "") for kind in (".csv.gz", ".txt.zst")]
        assert problems(*files) == tuple(f"{path}: no rows" for path in files)
        given = reader(*files, write(tmp_path, "x.txt", "x"))
        assert [record.text for record in given] == ["x"]
        assert [file.documents for file in given.ledger().files] == [0, 0, 0, 0, 0, 1]

    def test_several_members_and_padding(self, tmp_path: Path) -> None:
        lines = b'{"text": "one"}\n{"text": "two"}\n'
        a, b = write(tmp_path, "a.jsonl.gz", lines), write(tmp_path, "b.jsonl.zst", lines)
        a.write_bytes(a.read_bytes() + b"\0" * 512)
        b.write_bytes(b"\x50\x2a\x4d\x18\4\0\0\0meta" + b.read_bytes())
        assert texts(a, b) == ["one", "two"] * 2

    def test_places_of_csv_rows_are_their_first_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", 'text,n\r\n"one\r\ntwo",1\r\n"three\n\nfour",2\r\nx,3\r\n')
        assert [record.place for record in reader(path)] == [f"{path}:{n}" for n in (2, 4, 7)]
        assert texts(path) == ["one\r\ntwo", "three\n\nfour", "x"]

    def test_long_csv_fields(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.csv", ["word " * 100_000])
        assert len(texts(path)[0]) == 500_000


class TestDates:
    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (pa.timestamp("s"), 10**14),
            (pa.timestamp("ms"), 10**15),
            (pa.timestamp("s", "Foo/Bar"), 1),
            (pa.date32(), 10**8),
        ],
    )
    def test_one_that_python_has_not_is_no_date(
        self, tmp_path: Path, kind: pa.DataType, value: int
    ) -> None:
        path = tmp_path / "a.parquet"
        table = pa.table({"text": ["a", "b"], "date": pa.array([value, None], kind)})
        parquet.write_table(table, path)
        given = reader(path, date="date")
        dates = [(record.text, record.date) for record in given]
        assert [text for text, _ in dates] == ["a", "b"]
        assert dates[0][1] in (str(value), str(1000 * value)), "the number in the file (of ms)"
        assert day_of(dates[0][1]) is dates[1][1] is None


class TestByteOrderMarks:
    MARK = b"\xef\xbb\xbf"

    def test_they_are_not_text(self, tmp_path: Path) -> None:
        a = write(tmp_path, "a.jsonl", self.MARK + b'{"text": "one"}\n{"text": "two"}\n')
        b = write(tmp_path, "b.txt", self.MARK + b"three")
        c = write(tmp_path, "c.csv.gz", self.MARK + b"text\nfour\n")
        assert texts(a, b, c) == ["one", "two", "three", "four"]

    def test_offsets_count_them(self, tmp_path: Path) -> None:
        mark = self.MARK
        c = write(tmp_path, "c.jsonl", mark + b'{"text": "\xe9"}\n' + mark + b'{"text": "x"}\n')
        d = write(tmp_path, "d.txt", mark + b"a\n\xff")
        e = write(tmp_path, "e.txt", mark)
        assert problems(c, d, e) == (
            f"{c}:1: not UTF-8: byte 0xe9 at byte offset {c.read_bytes().index(0xE9)} of the file",
            f"{c}:2: not JSON: a byte order mark in the middle of the file at column 1",
            f"{d}:2: not UTF-8: byte 0xff at byte offset 5 of the file",
            f"{e}: the file holds only white space",
        )


class TestBadInput:
    def test_bad_documents_of_all_files_are_collected(self, tmp_path: Path) -> None:
        lines = b'{"text": "fine"}\n{"body": "x"}\n{"text": "caf\xe9"}\nnope\n'
        a = write(tmp_path, "a.jsonl", lines)
        b = write(tmp_path, "b.txt", b"line one\nline \xff two")
        c = write(tmp_path, "c.txt", " \n ")
        d = write(tmp_path, "d.jsonl.gz", lines)
        assert problems(a, b, c, d) == (
            f"{a}:2: no field 'text'; fields present: 'body'. Known: body.",
            f"{a}:3: not UTF-8: byte 0xe9 at byte offset 44 of the file",
            f"{a}:4: not JSON: Expecting value at column 1",
            f"{b}:2: not UTF-8: byte 0xff at byte offset 14 of the file",
            f"{c}: the file holds only white space",
            f"{d}:2: no field 'text'; fields present: 'body'. Known: body.",
            f"{d}:3: not UTF-8: byte 0xe9 at byte offset 44 of the unpacked file",
            f"{d}:4: not JSON: Expecting value at column 1",
        )
        assert a.read_bytes()[44] == 0xE9
        assert b.read_bytes()[14] == 0xFF

    def test_nothing_is_given_once_something_is_wrong(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", '{"text": "1"}\nx\n{"text": "2"}\n')
        stream = iter(reader(path))
        assert next(stream).text == "1"
        with pytest.raises(CorpusError, match="some documents cannot be used") as caught:
            next(stream)
        assert "bad_lines=skip" in caught.value.remedy

    @pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_a_column_that_is_not_there(
        self, tmp_path: Path, suffix: str, policy: BadLines
    ) -> None:
        path = write_rows(tmp_path / f"a{suffix}", TEXTS, field="content")
        assert problems(path, bad_lines=policy) == (
            f"{path}: no column 'text'; columns: 'id', 'content'. Did you mean 'content'?",
        )
        assert problems(path, field="content", date="when", bad_lines=policy) == (
            f"{path}: no column 'when'; columns: 'id', 'content'. Known: content, id.",
        )

    def test_a_field_for_the_date_that_is_not_there(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.jsonl", TEXTS)
        (line,) = problems(path, date="dat")
        assert line == (
            f"{path}: 3 lines (1, 2, 3): no field 'dat' (the date); fields present: 'id', 'text'."
            " Known: id, text."
        )
        plain = write(tmp_path, "b.txt", "x")
        assert problems(plain, date="date") == (
            f"{plain}: plain text has no field 'date' (the date)",
        )

    def test_csv_rows_that_do_not_fit(self, tmp_path: Path) -> None:
        content = b'id,text\n1,fine\n2\n3,a,b\n\n4," "\n5,"caf\xe9 \xff"\n6,last\n'
        path = write(tmp_path, "a.csv", content)
        assert problems(path) == (
            f"{path}:3: 1 fields, but 2 columns",
            f"{path}:4: 3 fields, but 2 columns",
            f"{path}:5: empty line",
            f"{path}:6: field 'text' is empty",
            f"{path}:7: field 'text' is not UTF-8: byte 0xe9 at character 3 of the field",
        )

    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_csv_quotes_that_never_end(self, tmp_path: Path, policy: BadLines) -> None:
        unended = write(tmp_path, "a.csv", 'text\nfine\n"open\nmore\n')
        broken = write(tmp_path, "b.csv", 'text\nfine\n"a"b\nmore\n')
        rest = "(in the row that begins here; from here on it is not known where rows end)"
        assert problems(unended, broken, bad_lines=policy) == (
            f"{unended}:3: not CSV: unexpected end of data {rest}",
            f"{broken}:3: not CSV: ',' expected after '\"' {rest}",
        )

    def test_csv_headers(self, tmp_path: Path) -> None:
        double = write(tmp_path, "a.csv", "text,text\na,b\n")
        latin = write(tmp_path, "b.csv", "text,größe\na,b\n".encode("latin-1"))
        assert problems(double, latin) == (
            f"{double}: 2 columns 'text'; columns: 'text', 'text'.",
            f"{latin}:1: the names of the columns are not UTF-8",
        )

    def test_parquet_rows_and_columns(self, tmp_path: Path) -> None:
        rows, number = tmp_path / "a.parquet", tmp_path / "b.parquet"
        parquet.write_table(pa.table({"text": ["x", None, " ", "y"]}), rows)
        parquet.write_table(pa.table({"text": [1, 2]}), number)
        not_utf8 = tmp_path / "c.parquet"
        wrong = pa.array([b"fine", b"caf\xe9"]).cast(pa.string(), safe=False)
        parquet.write_table(pa.table({"text": wrong}), not_utf8)
        assert problems(rows, number, not_utf8) == (
            f"{rows} row 2: field 'text' is null, not a string",
            f"{rows} row 3: field 'text' is empty",
            f"{number}: column 'text' holds int64, not strings",
            f"{not_utf8} row 2: not UTF-8: byte 0xe9 at byte 3 of the field",
        )

    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_damaged_files(self, tmp_path: Path, policy: BadLines) -> None:
        for suffix in (".jsonl.gz", ".jsonl.zst", ".csv.gz", ".parquet"):
            path = write_rows(tmp_path / f"a{suffix}", TEXTS * 500)
            path.write_bytes(path.read_bytes()[:-30])
            (line,) = problems(path, bad_lines=policy)
            assert line.startswith(f"{path}: ")
            assert "cannot be read: " in line or "not readable as Parquet after row " in line
        plain = write(tmp_path, "x.jsonl", '{"text": "not packed"}\n')
        (line,) = problems(plain.rename(tmp_path / "x.jsonl.gz"), bad_lines=policy)
        assert line.endswith("the name says gzip, which the content is not: rename it")

    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_bytes_after_the_end(self, tmp_path: Path, policy: BadLines) -> None:
        for suffix in (".jsonl.gz", ".txt.zst"):
            path = write(tmp_path, f"a{suffix}", '{"text": "fine"}\n')
            path.write_bytes(path.read_bytes() + b"garbage")
            (line,) = problems(path, bad_lines=policy)
            assert line.startswith(f"{path}: cannot be read: ")

    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_content_that_the_name_does_not_say(self, tmp_path: Path, policy: BadLines) -> None:
        """One line for a file, not one for every row."""
        lines = '{"text": "naïve"}\n' * 30
        packed = write(tmp_path, "x.jsonl.gz", lines).read_bytes()
        table = tmp_path / "x.parquet"
        parquet.write_table(pa.table({"text": ["x"]}), table)
        gzip_says = "the content is gzip, which the name does not say: add `.gz`"
        expected = {
            write(tmp_path, "a.jsonl", packed): gzip_says,
            write(tmp_path, "b.csv.zst", packed): gzip_says,
            write(tmp_path, "c.jsonl.gz", packed): gzip_says,  # twice
            write(
                tmp_path, "d.txt", table.read_bytes()
            ): "the content is Parquet: name it `.parquet`",
            write(tmp_path, "e.jsonl", lines.encode("utf-16")): "the content is UTF-16: convert it,"
            " `iconv -f UTF-16 -t UTF-8`",
            write(tmp_path, "f.csv.gz", lines.encode("utf-16-be")): "the content is UTF-16: convert"
            " it, `iconv -f UTF-16BE -t UTF-8`",
            write(
                tmp_path, "g.txt", lines.encode("utf-16-le")
            ): "the content is UTF-16: convert it, `iconv -f UTF-16LE -t UTF-8`",
        }
        found = problems(*expected, bad_lines=policy)
        assert found == tuple(f"{path}: cannot be read: {why}" for path, why in expected.items())

    @pytest.mark.parametrize("policy", ["fail", "skip"])
    def test_parquet_pages_with_a_wrong_checksum(self, tmp_path: Path, policy: BadLines) -> None:
        path = tmp_path / "a.parquet"
        words = [f"word-{number:05}" for number in range(9)]
        parquet.write_table(
            pa.table({"text": words}),
            path,
            row_group_size=3,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=False,
        )
        assert texts(path) == words
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"word-00004", b"word-00704"))
        (line,) = problems(path, bad_lines=policy)
        assert line.startswith(f"{path}: not readable as Parquet after row 3, in row group 1: ")
        assert "CRC checksum verification failed" in line

    def test_a_file_that_goes_away(self, tmp_path: Path) -> None:
        a, b = write(tmp_path, "a.txt", "x"), write(tmp_path, "b.txt", "y")
        given, late = reader(a, b), iter(reader(a, b))
        next(late)
        b.unlink()
        with pytest.raises(CorpusError) as caught:
            list(given)
        assert caught.value.problems == (f"{b}: No such file or directory",)
        with pytest.raises(CorpusError) as caught:
            list(late)
        assert caught.value.problems == (f"{b}: cannot be read: No such file or directory",)

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        files = [
            write_rows(tmp_path / f"a{suffix}", ["x"]).rename(tmp_path / f"{name}{suffix}")
            for suffix in ROW_SUFFIXES
        ]
        assert texts(*files) == ["x"] * len(files)

    def test_lines_with_the_same_problem_are_one_entry(self, tmp_path: Path) -> None:
        lines = ['{"content": "x"}'] * 50 + ['{"text": 3}', '{"text": 4}', "", '{"text": "fine"}']
        path = write(tmp_path, "a.jsonl", "\n".join(lines))
        missing, number, empty = problems(path)
        assert missing.startswith(
            f"{path}: 50 lines (1, 2, 3, 4, 5, ...): no field 'text'; fields "
        )
        assert number == f"{path}: 2 lines (51, 52): field 'text' is a number, not a string"
        assert empty == f"{path}:53: empty line"

    def test_reading_stops_when_all_lines_are_bad(self, tmp_path: Path) -> None:
        entry, last = problems(write(tmp_path, "a.jsonl", "x\n" * 3000))
        assert f": {MAX_BAD_LINES:,} lines (1, 2, 3, 4, 5, ...): not JSON" in entry
        assert last == "(further problems are not listed)"

    def test_reading_stops_after_so_many_problems(self, tmp_path: Path) -> None:
        lines = "".join(f'{{"field{n}": 1}}\n' for n in range(1000))
        found = problems(write(tmp_path, "a.jsonl", lines))
        assert len(found) == MAX_PROBLEMS + 1
        assert found[-1] == "(further problems are not listed)"

    def test_a_file_that_changed_before_or_while_it_is_read(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.jsonl", TEXTS)
        before, during = reader(path), reader(path)
        stream = iter(during)
        next(stream)
        with path.open("a") as file:
            file.write('{"text": "more"}\n')
        with pytest.raises(CorpusError, match="written to while they were read") as caught:
            list(stream)
        assert caught.value.problems == (str(path),)
        with pytest.raises(CorpusError, match="changed after they were pinned"):
            list(before)


class TestSkipping:
    def test_bad_rows_are_left_out_and_counted(self, tmp_path: Path) -> None:
        a = write(tmp_path, "a.jsonl", b'{"text": "1"}\nnope\n{"text": "caf\xe9"}\n{"text": "2"}\n')
        b = write(tmp_path, "b.csv", "text,n\n3,1\n4\n")
        c = write(tmp_path, "c.txt", b"x\n\xff")
        d = tmp_path / "d.parquet"
        parquet.write_table(pa.table({"text": ["5", None]}), d)
        given = reader(a, b, c, d, bad_lines="skip")
        assert [record.text for record in given] == ["1", "2", "3", "5"]
        ledger = given.ledger()
        assert [file.bad_rows_skipped for file in ledger.files] == [2, 1, 1, 1]
        assert [file.documents for file in ledger.files] == [2, 1, 0, 1]
        assert (ledger.documents, ledger.characters, ledger.bad_rows_skipped) == (4, 4, 5)
        assert ledger.first_bad_rows == (
            "file 1 line 2: not JSON: Expecting value at column 1",
            "file 1 line 3: not UTF-8: byte 0xe9 at byte offset 32 of the file",
            "file 2 line 3: 1 fields, but 2 columns",
            "file 3 line 2: not UTF-8: byte 0xff at byte offset 2 of the file",
            "file 4 row 2: field 'text' is null, not a string",
        )
        assert str(tmp_path) not in ledger.model_dump_json(), "it depends on content, not places"

    def test_the_first_places_only(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", '{"text": "1"}\n' + "x\n" * 5000)
        given = reader(path, bad_lines="skip")
        assert len(list(given)) == 1
        assert given.ledger().bad_rows_skipped == 5000
        assert len(given.ledger().first_bad_rows) == 10

    def test_skipping_is_not_for_the_wrong_field(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", '{"body": "x"}\n' * 30)
        found = problems(path, bad_lines="skip")
        assert found[0] == f"{path}:1: no field 'text'; fields present: 'body'. Known: body."
        assert found[-1] == "and 20 more: every row is bad, which `skip` is not for"
