"""Which files a corpus has: kinds by name, folders and globs, the order, and pins."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.readers.files import (
    SUFFIXES,
    check_pin,
    check_unchanged,
    content_sha256,
    hash_files,
    resolve_files,
    suffix_of,
)
from cpt_residual.errors import CorpusError

KNOWN = ".jsonl, .jsonl.gz, .jsonl.zst, .csv, .csv.gz, .csv.zst, .txt, .txt.gz, .txt.zst, .parquet"


def write(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return [folder / name for name in names]


def hashes(*paths: Path) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in paths}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.b.jsonl.gz", ".jsonl.gz"),
        ("A.CSV.ZST", ".csv.zst"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("a.json", None),
        ("jsonl", None),
    ],
)
def test_the_end_of_a_name_says_the_kind(name: str, suffix: str | None) -> None:
    assert suffix_of(Path(name)) == suffix
    assert suffix is None or suffix in SUFFIXES


def test_files_globs_and_folders_are_sorted_and_each_is_there_once(tmp_path: Path) -> None:
    b, a, deep = write(tmp_path, "b.jsonl", "a.txt", "deep/er/c.jsonl.gz")
    patterns = [str(b), str(tmp_path / "*.jsonl"), str(tmp_path), str(a), str(tmp_path / "de*")]
    assert resolve_files(patterns) == [a, b, deep]


def test_a_folder_stands_for_the_known_kinds_below_it(tmp_path: Path) -> None:
    found = write(tmp_path, "x/1.parquet", "x/y/2.csv", "z.txt.zst")
    write(tmp_path, "README.md", ".hidden.txt", "x/.git/3.txt", "_SUCCESS")
    assert resolve_files([str(tmp_path)]) == found


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (inside,) = write(tmp_path, "elsewhere/a.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "link").symlink_to(tmp_path / "elsewhere")
    (corpus / "loop").symlink_to(corpus)
    (corpus / "copy.txt").symlink_to(inside)
    (corpus / "named").symlink_to(tmp_path / "elsewhere")
    assert resolve_files([str(corpus)]) == [corpus / "copy.txt"]
    (corpus / "copy.txt").unlink()
    assert resolve_files([str(corpus)]) == [corpus / "link/a.txt"]
    assert resolve_files([str(corpus / "**")]) == [corpus / "link/a.txt"]


def test_a_file_with_several_paths_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "s/x.jsonl")
    monkeypatch.chdir(tmp_path)
    assert resolve_files(["s", f"{tmp_path}/s", "s/../s/x.jsonl"]) == [Path("s/x.jsonl")]
    (tmp_path / "a.jsonl").symlink_to("s/x.jsonl")
    (tmp_path / "b").symlink_to("s")
    assert resolve_files(["a.jsonl", "b"]) == [Path("a.jsonl")]
    assert resolve_files(["a.jsonl", "b", "s"]) == [Path("s/x.jsonl")], "itself before its links"
    assert resolve_files(["."]) == [Path("s/x.jsonl")]


def test_globs(tmp_path: Path) -> None:
    a, b, deep, hidden = write(tmp_path, "a.txt", "b.txt", "x/y/c.txt", ".h.txt")
    expected = {
        "*.txt": [a, b],
        "[!a].txt": [b],
        "?.txt": [a, b],
        ".*.txt": [hidden],
        "**": [a, b, deep],
        "**/*.txt": [a, b, deep],
        "x/**/c.txt": [deep],
        "*/y": [deep],
    }
    for pattern, files in expected.items():
        assert resolve_files([str(tmp_path / pattern)]) == files, pattern


def test_a_name_with_the_characters_of_a_glob(tmp_path: Path) -> None:
    one, two, plain = write(tmp_path, "part[1].jsonl", "run[a]/x.jsonl", "part1.jsonl")
    star = write(tmp_path, "s/a*.txt", "s/ab.txt")
    assert resolve_files([str(one)]) == [one]
    assert resolve_files([str(tmp_path / "run[a]")]) == [two]
    assert resolve_files([str(tmp_path / "run[a]/*.jsonl")]) == [two]
    assert resolve_files([str(tmp_path / "**/part[1].jsonl")]) == [one]
    assert resolve_files([str(tmp_path / "s/a*.txt")]) == star, "which matches its own name too"
    one.unlink()
    assert resolve_files([str(one)]) == [plain]


def test_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~x` is the home of user `x`, unless something here is called that or there is no such
    user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (mine,) = write(tmp_path, "home/a.jsonl")
    assert resolve_files(["~/a.jsonl"]) == [mine]
    assert problems("~nobody-here/a.jsonl") == (
        "~nobody-here/a.jsonl: no such file, and no folder ~nobody-here",
    )
    for name in ("~nobody-here", "~root"):
        write(tmp_path, f"{name}/b.jsonl")
        for pattern in (name, f"{name}/b.jsonl", f"{name}/*.jsonl"):
            assert resolve_files([pattern]) == [Path(name) / "b.jsonl"], pattern


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    found = write(tmp_path, f"{name}.jsonl", f"{name}/a.txt")
    assert resolve_files([str(tmp_path)]) == sorted(found)
    assert resolve_files([str(found[0])]) == [found[0]]
    assert content_sha256(hashes(*found))


def test_files_of_no_bytes_hold_no_documents(tmp_path: Path) -> None:
    good = [tmp_path / name for name in ("a.csv", "b.jsonl", "c.txt")]
    half = [tmp_path / name for name in ("d.jsonl.gz", "e.txt.ZST", "f.parquet")]
    for path in (*good, *half):
        path.touch()
    assert resolve_files([str(path) for path in good]) == good
    why = "the file is empty (0 bytes), which no file of this kind is"
    assert problems(str(tmp_path)) == tuple(f"{path}: {why}" for path in half)


class TestWhatCannotBeRead:
    @pytest.fixture
    def folder(self) -> Generator[Path]:
        """Where also a user without rights gets in."""
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            Path(name).chmod(0o755)
            yield Path(name)

    @pytest.mark.parametrize("pattern", ["", "*", "**/*.jsonl", "*/*.jsonl", "b/*.jsonl"])
    def test_a_folder_that_cannot_be_listed(self, folder: Path, pattern: str) -> None:
        write(folder, "a/1.jsonl", "b/2.jsonl")
        (folder / "b").chmod(0)
        try:
            with without_rights():
                found = problems(str(folder / pattern))
        finally:
            (folder / "b").chmod(0o755)
        assert found == (f"{folder}/b: Permission denied",)

    @pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "b/2.jsonl"])
    def test_a_folder_that_can_only_be_listed(self, folder: Path, pattern: str) -> None:
        write(folder, "a/1.jsonl", "b/2.jsonl")
        (folder / "b").chmod(0o444)
        try:
            with without_rights():
                found = problems(str(folder / pattern))
        finally:
            (folder / "b").chmod(0o755)
        assert found == (f"{folder}/b/2.jsonl: Permission denied",)

    def test_a_file(self, folder: Path) -> None:
        a, _ = write(folder, "a.jsonl", "b.jsonl")
        a.chmod(0)
        with without_rights():
            assert problems(str(folder)) == (f"{a}: Permission denied",)

    def test_a_name_that_is_not_there_in_a_folder_that_cannot_be_listed(self, folder: Path) -> None:
        write(folder, "a.jsonl")
        folder.chmod(0o111)
        with without_rights():
            assert problems(str(folder / "b.jsonl")) == (f"{folder}/b.jsonl: no such file.",)

    def test_links_to_nothing(self, tmp_path: Path) -> None:
        write(tmp_path, "a.jsonl")
        (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
        (tmp_path / "notes").symlink_to(tmp_path / "gone")
        found = problems(str(tmp_path))
        assert found == (f"{tmp_path}/b.jsonl: a link to nothing",)

    def test_what_is_no_file_in_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path, "a.jsonl")
        os.mkfifo(tmp_path / "b.jsonl")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "c.txt"))
        (tmp_path / "d.csv").symlink_to("/dev/zero")
        os.mkfifo(tmp_path / "e.pipe")
        found = problems(str(tmp_path))
        assert found == tuple(
            f"{tmp_path}/{name}: not a regular file" for name in ("b.jsonl", "c.txt", "d.csv")
        )

    def test_links_in_circles(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").symlink_to("b.jsonl")
        (tmp_path / "b.jsonl").symlink_to("a.jsonl")
        for pattern in ("", "*.jsonl", "a.jsonl"):
            found = problems(str(tmp_path / pattern))
            assert found[0] == f"{tmp_path}/a.jsonl: Too many levels of symbolic links", pattern

    def test_names_that_no_file_can_have(self, tmp_path: Path) -> None:
        assert problems(f"{tmp_path}/a\0.jsonl")[0].endswith("embedded null byte")
        (long,) = problems(f"{tmp_path}/{'x' * 300}.jsonl")
        assert long.endswith(": File name too long")

    def test_files_that_go_away_in_between(self, tmp_path: Path) -> None:
        a, b = write(tmp_path, "a.txt", "b.txt")
        pinned = hashes(a, b)
        b.unlink()
        for read in (
            lambda: hash_files([a, b], file_sha256),
            lambda: check_unchanged([a, b], pinned),
        ):
            with pytest.raises(CorpusError) as caught:
                read()
            assert caught.value.problems == (f"{b}: No such file or directory",)


def problems(*patterns: str) -> tuple[str, ...]:
    with pytest.raises(CorpusError) as caught:
        resolve_files(patterns)
    return caught.value.problems


@contextmanager
def without_rights() -> Generator[None]:
    """As another user than root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_everything_wrong_with_the_files_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "notes.md", "empty/x.log")
    (tmp_path / "corpus.parquet").write_text("")
    patterns = ["corpus.parqet", "corpus.parquet", "notes.md", "*.csv", "none/x.txt", "empty"]
    with pytest.raises(CorpusError) as caught:
        resolve_files([str(tmp_path / pattern) for pattern in patterns])
    assert caught.value.problems == (
        f"{tmp_path}/corpus.parqet: no such file. Did you mean 'corpus.parquet'?",
        f"{tmp_path}/*.csv: no file matches",
        f"{tmp_path}/none/x.txt: no such file, and no folder {tmp_path}/none",
        f"{tmp_path}/empty: no file of a known kind below this folder; known: {KNOWN}",
        f"{tmp_path}/corpus.parquet: the file is empty (0 bytes), which no file of this kind is",
        f"{tmp_path}/notes.md: unknown kind '.md'; known: {KNOWN}",
    )
    assert caught.value.remedy.startswith("Nothing was read.")


def test_what_is_named_but_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(CorpusError) as caught:
        resolve_files([str(tmp_path / name) for name in ("gone.jsonl", "pipe.jsonl")])
    assert caught.value.problems == (
        f"{tmp_path}/gone.jsonl: a link to nothing",
        f"{tmp_path}/pipe.jsonl: not a regular file",
    )


def test_files_that_changed_since_the_run_was_planned(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.txt", "b.txt")
    pinned = hashes(a, b)
    check_unchanged([a, b], pinned)
    b.write_text("three")
    with pytest.raises(CorpusError, match="changed after they were pinned") as caught:
        check_unchanged([a, b], pinned)
    assert caught.value.problems[0].startswith(f"{b}: sha256 ")
    with pytest.raises(CorpusError) as caught:
        check_unchanged([a], pinned)
    assert caught.value.problems == ("1 files now, 2 when the run was planned",)


def test_a_renamed_file_is_still_the_pinned_one(tmp_path: Path) -> None:
    (a,) = write(tmp_path, "a.txt")
    pinned = hashes(a)
    content = content_sha256(pinned)
    z = a.rename(tmp_path / "z.txt")
    check_unchanged([z], pinned)
    assert content_sha256(hashes(z)) == content


def test_a_pin_of_the_configuration_is_of_content_kind_and_order(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.txt", "b.txt")
    b.write_text("other")
    pin = content_sha256(hashes(a, b))
    check_pin("mine", pin, hashes(a, b))
    check_pin("mine", None, hashes(a, b))
    swapped = hashes(b, a)
    kinds = hashes(a.rename(tmp_path / "a.jsonl"), b)
    for changed in (swapped, kinds, hashes(b)):
        with pytest.raises(CorpusError, match=r"corpora\.mine: the files are not those") as caught:
            check_pin("mine", pin, changed)
        assert caught.value.problems[0].endswith(pin)
        assert caught.value.problems[1].endswith(content_sha256(changed))
