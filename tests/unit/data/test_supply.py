"""Packs that a crew encodes: the same bytes as in one process, and what a kill leaves is used."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpt_residual.data.packing.build import Tokenising
from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.data.tokenize.document_source import DocumentSource
from cpt_residual.data.tokenize.token_cache import read_tokens
from cpt_residual.errors import ArtifactError, CompatibilityError, CorpusError
from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE, ChatEncoder
from cpt_residual.modeling.tokenizer import text_encoder
from support.packs import (
    FIRST_BYTE,
    byte_dialogues,
    byte_texts,
    dialogue,
    pack,
    plan,
    write_dialogues,
    write_texts,
)
from support.tiny_tokenizer import texts, tiny_tokenizer

CREW = Tokenising(num_workers=2)


@pytest.fixture(autouse=True)
def _find_support(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Processes of a crew import the encoders of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture
def sources(tmp_path: Path) -> list[DocumentSource]:
    """Text of both packings with a real tokenizer, and dialogues: whatever goes to a process."""
    some = [f"{one} {number}" for number, one in enumerate(texts(60))]
    first = write_texts(tmp_path / "a.jsonl", some)
    second = write_texts(tmp_path / "b.jsonl", [" ".join(some[n : n + 9]) for n in range(40)])
    chat = write_dialogues(tmp_path / "c.jsonl", [dialogue("who?", one[:20]) for one in some])
    tokenizer = tiny_tokenizer()
    encode = text_encoder(tokenizer)
    return [
        DocumentSource("a", first, share=0.5, encode=encode),
        DocumentSource("b", second, share=0.3, encode=encode, packing="best_fit"),
        DocumentSource(
            "c",
            chat,
            share=0.2,
            encode=ChatEncoder(tokenizer, TINY_CHAT_TEMPLATE),
            packing="whole",
            max_epochs=9,
        ),
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def alone(source: DocumentSource) -> list[DocumentSource]:
    return [replace(source, share=1.0)]


ASKED = plan(64, 20_000, repeat=True)


@pytest.mark.parametrize(("workers", "shard_bytes"), [(1, 700), (3, 3000)])
def test_bytes_do_not_depend_on_workers_and_shards(
    workers: int, shard_bytes: int, sources: list[DocumentSource], tmp_path: Path
) -> None:
    how = replace(CREW, scratch=tmp_path / "scratch", num_workers=workers, shard_bytes=shard_bytes)
    pack(tmp_path / "here", sources, ASKED)
    pack(tmp_path / "crew", sources, ASKED, tokenising=how)
    assert len(files_of(tmp_path / "scratch")) > 3
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "here")


def test_only_about_as_many_shards_as_the_budget_needs(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "t.jsonl", ["abcdefgh" * 12] * 1000)
    how = replace(CREW, scratch=tmp_path / "scratch", shard_bytes=1000)
    pack(tmp_path / "pack", [byte_texts(path)], plan(64, 20_000), tokenising=how)
    needed = 20_000 // 980 + 1
    assert needed <= len(files_of(tmp_path / "scratch")) <= needed + CREW.num_workers + 2


def test_whole_files_are_used_again_and_damaged_ones_are_not(
    sources: list[DocumentSource], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    how = replace(CREW, scratch=scratch, shard_bytes=2000)
    pack(tmp_path / "first", alone(sources[0]), plan(64, 8000, repeat=True), tokenising=how)
    names = sorted(scratch.iterdir())
    whole, damaged, cut, foreign, *_ = names
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-8] + bytes(8))
    cut.write_bytes(cut.read_bytes()[:-1])
    foreign.write_bytes(whole.read_bytes())
    stamp = whole.stat().st_mtime_ns
    pack(tmp_path / "second", alone(sources[0]), plan(64, 8000, repeat=True), tokenising=how)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert whole.stat().st_mtime_ns == stamp, "encoded only once"
    assert damaged.read_bytes() == content
    assert len(read_tokens(cut).documents) > 0


def test_files_of_another_tokenizer_are_not_used(
    sources: list[DocumentSource], tmp_path: Path
) -> None:
    how = replace(CREW, scratch=tmp_path / "scratch", shard_bytes=5000)
    asked = plan(64, 3000, repeat=True)
    path = sources[0].documents
    pack(tmp_path / "other", alone(sources[0]), asked, tokenising=how)
    mine = replace(asked, tokenizer_map_hash="another")
    pack(tmp_path / "crew", [byte_texts(path)], mine, tokenising=how)
    pack(tmp_path / "here", [byte_texts(path)], mine)
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "here")


def test_files_of_other_texts_of_the_same_lengths_are_not_used(tmp_path: Path) -> None:
    how = replace(CREW, scratch=tmp_path / "scratch", shard_bytes=60)
    for letters in ("abc", "def"):
        path = write_texts(tmp_path / "t.jsonl", [letter * 20 for letter in letters])
        pack(tmp_path / letters, [byte_texts(path)], plan(8, 60), tokenising=how)
    ids = np.array(open_pack(tmp_path / "def").ids)
    assert {chr(int(token) - FIRST_BYTE) for token in ids[ids >= FIRST_BYTE]} == set("def")


def test_files_of_another_encoder_are_not_used(tmp_path: Path) -> None:
    """The tokens are the same, the special tokens around them are not."""
    path = write_texts(tmp_path / "t.jsonl", texts(60))
    plain = text_encoder(tiny_tokenizer())
    for name, encode in (("plain", plain), ("other", replace(plain, eos_id=plain.eos_id + 1))):
        source = DocumentSource("a", path, share=1.0, encode=encode)
        how = replace(CREW, scratch=tmp_path / "scratch", shard_bytes=5000)
        pack(tmp_path / name / "crew", [source], plan(64, 1000), tokenising=how)
        pack(tmp_path / name / "here", [source], plan(64, 1000))
        assert files_of(tmp_path / name / "crew") == files_of(tmp_path / name / "here")


def test_a_full_disk_is_no_defect(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "t.jsonl", ["x" * 3000] * 50)
    how = replace(CREW, scratch=tmp_path / "scratch")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"0-0000-000000\.tokens: File too large"):
            pack(tmp_path / "p", [byte_texts(path)], plan(8, 100), tokenising=how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files_of(tmp_path / "scratch")


def test_bad_lines_are_told_as_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"texts": "b"}\nnope\n')
    told: list[str] = []
    for how in (None, replace(CREW, scratch=tmp_path / "scratch")):
        with pytest.raises(CorpusError) as caught:
            pack(tmp_path, [byte_texts(path)], plan(4, 2), tokenising=how)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "t.jsonl:3: not JSON" in told[0]


def test_too_few_tokens_and_long_dialogues_are_told_as_in_one_process(tmp_path: Path) -> None:
    how = replace(CREW, scratch=tmp_path / "scratch", shard_bytes=100)
    few = byte_texts(write_texts(tmp_path / "t.jsonl", ["aaaa", "bb"] * 9), "mine")
    with pytest.raises(CorpusError, match="source mine has too few tokens: 90 found, 200 needed"):
        pack(tmp_path / "p", [few], plan(4, 200), tokenising=how)
    chat = [dialogue("q", "a" * length) for length in (3, 9, 4, 20, 3)]
    long = byte_dialogues(write_dialogues(tmp_path / "c.jsonl", chat), "mine")
    with pytest.raises(CorpusError, match="2 of 5 chat documents are longer than a row of 8"):
        pack(tmp_path / "p", [long], plan(8, 17), tokenising=how)


def test_a_pack_of_another_format_says_so(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "t.jsonl", ["aaaa"])
    pack(tmp_path / "p", [byte_texts(path)], plan(4, 6))
    file = tmp_path / "p" / "pack.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 1}))
    with pytest.raises(CompatibilityError, match=r"has format version 1; .* reads 2"):
        open_pack(tmp_path / "p")


@pytest.mark.parametrize(("max_epochs", "budget"), [(2, 40), (3, 60)])
def test_a_source_is_read_no_more_often_than_it_may(
    max_epochs: int, budget: int, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / "t.jsonl", ["aaaaaaaa", "bbbbbbbb"])
    source = byte_texts(path, "mine", max_epochs=max_epochs)
    assert pack(tmp_path, [source], plan(4, budget)).sources[0].epochs == max_epochs
    with pytest.raises(CorpusError) as caught:
        pack(tmp_path, [source], plan(4, budget + 1, repeat=True))
    assert str(caught.value) == (
        f"source mine has too few tokens: {budget} found, {budget + 1} needed\n"
        f"  needed: share 1 of token_budget {budget + 1}\n"
        f"  found: {max_epochs} epochs of the 2 documents of t.jsonl\n"
        f"Add documents, lower token_budget, or raise max_epochs from {max_epochs} to"
        f" {max_epochs + 1}."
    )
