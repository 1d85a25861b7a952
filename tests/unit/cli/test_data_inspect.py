"""`cpt-residual data inspect`: what it says of packs and corpora, and of what is neither.

After a wanted change: UPDATE_GOLDEN=1 python -m pytest tests/unit/cli/test_data_inspect.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.cli_family import Run
from support.commands import REPOSITORY
from support.data_store import QUESTION, byte_tokenizer, make_store
from support.tiny_tokenizer import save, tiny_tokenizer

ROWS = ("--rows", "3", "--seed", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    make_store(root)
    shutil.rmtree(root / "work")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store's root; the current directory is the one that holds it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "outputs"))


def artifact(root: Path, stage: str) -> Path:
    (path,) = (root / "store" / stage).iterdir()
    return path


def state(document: dict[str, list[dict[str, str]]], name: str) -> str:
    (found,) = [check for check in document["checks"] if check["name"] == name]
    return found["state"]


def test_a_small_pack_and_a_small_corpus_in_full(root: Path, run: Run) -> None:
    pack = run("data", "inspect", "pack:cpt", "--rows", "20", "--verify", "--full")
    corpus = run("data", "inspect", "corpus:new", "--rows", "2", "--verify")
    assert (pack.status, corpus.status) == (0, 0), pack.stderr + corpus.stderr
    assert_golden("inspect_pack.txt", pack.stdout, root)
    assert_golden("inspect_corpus.txt", corpus.stdout, root)


def assert_golden(name: str, text: str, root: Path) -> None:
    """The text without blanks at the ends of lines, and paths from the root on."""
    plain = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    plain = plain.replace(str(root), "outputs")
    file = REPOSITORY / "tests" / "golden" / "data" / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(plain, encoding="utf-8")
    assert plain == file.read_text(encoding="utf-8"), "see the top of this file"


def test_an_artifact_is_named_by_path_digits_or_node(root: Path, run: Run) -> None:
    path = artifact(root, "pack")
    told = [
        run("data", "inspect", word, "--json").document
        for word in (path, path.name[:5], "pack:cpt")
    ]
    assert [document["node"] for document in told] == ["pack:cpt"] * 3
    assert told[0]["counted"] == told[1]["counted"] == told[2]["counted"]
    elsewhere = run("data", "inspect", path.name[:5], "--root", root, "--json")
    assert elsewhere.document["fingerprint"].startswith(path.name)


def test_a_name_that_fits_nothing_or_too_much_lists_what_there_is(root: Path, run: Run) -> None:
    wrong = run("data", "inspect", "pack:ctp")
    assert wrong.status == 2
    assert "Did you mean 'pack:cpt'?" in wrong.stderr
    assert f"corpus:new {artifact(root, 'corpus').name}"[:11] in wrong.stderr
    copy = shutil.copytree(artifact(root, "pack"), root / "store" / "pack" / "elsewhere")
    twice = run("data", "inspect", "pack:cpt")
    assert twice.status == 2
    assert "is the beginning or the name of 2 artifacts" in twice.stderr
    assert str(Path("outputs") / copy.relative_to(root)) in twice.stderr
    nowhere = run("data", "inspect", "pack:cpt", "--root", "nowhere")
    assert nowhere.status == 2
    assert f"no such folder: {Path('nowhere') / 'store'}" in nowhere.stderr


def test_json_is_one_document_with_counts_samples_and_a_figure(root: Path, run: Run) -> None:
    done = run("data", "inspect", "pack:cpt", *ROWS, "--figures", "f", "--json")
    document = done.document
    ledger = document["ledger"]
    assert document["counted"]["tokens"] == ledger["tokens"] == 800
    for counted, recorded in zip(document["sources"], ledger["sources"], strict=True):
        assert counted["counted"].items() <= recorded.items()
        assert counted["lengths"]["total"] == recorded["tokens"]
    assert [sample["decoded"] for sample in document["samples"]] == [True] * 3
    assert list(document["figures"]) == ["lengths"]
    assert Path(document["figures"]["lengths"]).read_bytes().startswith(b"\x89PNG")
    assert ledger == json.loads((artifact(root, "pack") / "pack.json").read_text())
    assert (
        run("data", "inspect", "pack:cpt", *ROWS, "--json").document["samples"]
        == (document["samples"])
    )
    assert run("data", "inspect", "pack:cpt", "--rows", "0", "--json").document["samples"] == []


def test_the_tokenizer_is_found_given_refused_or_missed(root: Path, run: Run) -> None:
    pack = artifact(root, "pack")
    wrong = run("data", "inspect", pack, "--tokenizer", save(tiny_tokenizer(), Path("other")))
    assert wrong.status == 2
    assert "other is not the tokenizer of this pack" in wrong.stderr
    assert wrong.stdout == ""
    shutil.rmtree(root / "store" / "source")
    without = run("data", "inspect", pack, *ROWS)
    assert without.status == 0
    assert "rows are shown as token ids: the model is not in the store" in without.stderr
    assert "token ids, because no tokenizer was found" in without.stdout
    assert "[BOS]" not in without.stdout or "Dodo" not in without.stdout
    given = run("data", "inspect", pack, *ROWS, "--tokenizer", save(byte_tokenizer(), Path("b")))
    assert given.status == 0
    assert "Dodo Nimer" in given.stdout
    corpus = run("data", "inspect", "corpus:new", "--tokenizer", "b")
    assert corpus.status == 2
    assert "its documents are text, not tokens" in corpus.stderr


def test_a_copied_folder_without_manifest_is_looked_at(root: Path, run: Run) -> None:
    copy = Path(shutil.copytree(artifact(root, "pack"), "copy"))
    (copy / "manifest.json").unlink()
    done = run("data", "inspect", copy, "--json", "--verify")
    assert done.status == 0
    assert done.document["fingerprint"] is None
    assert state(done.document, "files are those of the manifest") == "not checked"
    assert state(done.document, "hashes of the rows") == "agrees"
    assert "there is no manifest" in done.stderr


def test_edited_flags_are_found_by_counting(root: Path, run: Run) -> None:
    flags = np.load(artifact(root, "pack") / "flags.npy", mmap_mode="r+")
    flags[0, 5] ^= 2
    flags[1, 0] |= 2
    flags.flush()
    done = run("data", "inspect", "pack:cpt", "--json")
    assert done.status == 1
    assert state(done.document, "counts of source new") == "differs"
    assert state(done.document, "rows are well formed") == "differs"
    told = run("data", "inspect", "pack:cpt")
    assert told.status == 1
    assert "a label at the start of a segment: 1 times, first in row 1" in told.stdout


def test_an_edited_id_is_found_by_verify(root: Path, run: Run) -> None:
    ids = np.load(artifact(root, "pack") / "ids.npy", mmap_mode="r+")
    ids[3, 3] ^= 3
    ids.flush()
    assert run("data", "inspect", "pack:cpt", "--json").status == 0
    done = run("data", "inspect", "pack:cpt", "--verify", "--json")
    assert done.status == 1
    assert state(done.document, "hashes of the rows") == "differs"
    assert state(done.document, "files are those of the manifest") == "differs"
    (hashes,) = [c for c in done.document["checks"] if c["name"] == "hashes of the rows"]
    assert hashes["detail"].startswith("the first 4 rows: ")
    ids[3, 3] = 5000
    ids.flush()
    done = run("data", "inspect", "pack:cpt", "--json")
    assert state(done.document, "ids are those of the tokenizer") == "differs"


@pytest.mark.parametrize("name", ["ids.npy", "flags.npy", "sources.npy", "pack.json"])
@pytest.mark.parametrize("how", ["cut", "garbage", "gone"])
def test_a_damaged_pack_is_named(root: Path, run: Run, name: str, how: str) -> None:
    file = artifact(root, "pack") / name
    raw = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(raw[:-9] if how == "cut" else b"\x93NUMPY" + bytes(len(raw) - 6))
    done = run("data", "inspect", artifact(root, "pack"))
    assert done.status == 2
    assert done.stdout == ""
    assert "CorruptArtifactError: pack " in done.stderr
    assert name in done.stderr


def test_rows_of_an_unknown_source_are_refused(root: Path, run: Run) -> None:
    sources = np.load(artifact(root, "pack") / "sources.npy", mmap_mode="r+")
    sources[2] = 9
    sources.flush()
    done = run("data", "inspect", "pack:cpt")
    assert done.status == 2
    assert "1 rows are of no source that pack.json has (2)" in done.stderr
    assert "the first is row 2, source 9" in done.stderr


def test_a_damaged_corpus_is_named(root: Path, run: Run) -> None:
    corpus = artifact(root, "corpus")
    documents = corpus / "documents.jsonl"
    lines = documents.read_bytes().splitlines(keepends=True)
    documents.write_bytes(b"".join(lines[:-1]))
    lost = run("data", "inspect", corpus, "--json")
    assert lost.status == 1
    assert state(lost.document, "documents and characters") == "differs"
    documents.write_bytes(lines[0] + b'{"text": 3}\n')
    broken = run("data", "inspect", corpus)
    assert broken.status == 2
    assert "documents.jsonl:2: field 'text' is a number, not a string" in broken.stderr
    ledger = json.loads((corpus / "ledger.json").read_text())
    (corpus / "ledger.json").write_text(json.dumps(ledger | {"passes": [{"name": "length"}]}))
    assert (
        "ledger.json: passes.0.documents_in: Field required"
        in run("data", "inspect", corpus).stderr
    )
    (corpus / "ledger.json").write_text("[]")
    assert "ledger.json: Input should be an object" in run("data", "inspect", corpus).stderr
    (corpus / "ledger.json").write_text("[" * 200_000)
    assert "has no readable ledger" in run("data", "inspect", corpus).stderr
    (corpus / "manifest.json").write_text("{}")
    assert "cannot be trusted" in run("data", "inspect", corpus).stderr


def test_a_ledger_that_does_not_balance_is_found(root: Path, run: Run) -> None:
    file = artifact(root, "corpus") / "ledger.json"
    ledger = json.loads(file.read_text())
    ledger["passes"][1]["documents_out"] -= 1
    file.write_text(json.dumps(ledger))
    done = run("data", "inspect", "corpus:new", "--json")
    assert done.status == 1
    (check,) = [c for c in done.document["checks"] if c["name"] == "the ledger balances"]
    assert check["state"] == "differs"
    assert "documents: into exact_dedup 11, out of exact_dedup and dropped 10" in check["detail"]


def test_what_is_neither_pack_nor_corpus_is_refused(root: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "thing.txt").write_text("x")
    for word, why in (
        ("some", "it holds thing.txt"),
        ("some/thing.txt", "is not a folder"),
        ("source:base", "artifact of stage source"),
        ("nowhere", "there is neither a folder nor an artifact nowhere"),
    ):
        done = run("data", "inspect", word)
        assert done.status == 2, word
        assert why in done.stderr
        assert "Traceback" not in done.stderr


def test_the_world_is_counted_by_its_files(root: Path, run: Run) -> None:
    document = run("data", "inspect", "world", "--json", "--rows", "1").document
    assert document["kind"] == "world"
    (file,) = document["files"]
    assert (file["name"], file["form"], file["documents"]) == ("instructions.jsonl", "chat", 12)
    (sample,) = file["samples"]
    assert sample["text"].startswith("user: Say ")


def test_text_cannot_act_on_the_terminal(root: Path, run: Run) -> None:
    documents = artifact(root, "corpus") / "documents.jsonl"
    nasty = "red \x1b[31m [bold]rich[/bold] \u202e back \r\n end"
    documents.write_text(json.dumps({"text": nasty}) + "\n")
    said = run("data", "inspect", "corpus:new", "--rows", "1").stdout
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "red \u241b[31m [bold]rich[/bold] \\u202e back \u240d\u21b5 end" in said


def test_a_question_that_was_dropped_is_not_in_the_corpus(root: Path, run: Run) -> None:
    said = run("data", "inspect", "corpus:new", "--rows", "100").stdout
    assert QUESTION not in said
    assert "holds a question 1" in said


def test_figures_into_a_file_are_refused_before_the_work(root: Path, run: Run) -> None:
    Path("taken").write_text("x")
    done = run("data", "inspect", "pack:cpt", "--figures", "taken/f")
    assert done.status == 2
    assert "taken/f cannot be written" in done.stderr


def test_a_ledger_of_foreign_make_is_told_as_it_is(root: Path, run: Run) -> None:
    pack = artifact(root, "pack")
    ledger = json.loads((pack / "pack.json").read_text())
    ledger["sources"][0]["corpus"] = "$x^{ \x1b[31m"
    ledger["marks"] = [{"rows": -5, "tokens": 1, "sha256": "x"}]
    ledger["phases"] = [
        {"share": 1, "first_row": -9, "rows": 1, "tokens": 1, "tokens_by_source": [1]}
    ]
    (pack / "pack.json").write_text(json.dumps(ledger))
    told = run("data", "inspect", pack, "--figures", "f", "--verify")
    assert told.status == 1
    assert "\x1b" not in told.stdout
    assert "the ledger has 2 sources, its phase 1 of them" in told.stdout
    assert "the first -5 rows: None, in the ledger x" in told.stdout
    assert Path("f/lengths.png").is_file()
