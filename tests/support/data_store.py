"""A small store of data artifacts: a tokenizer, two corpora, and a pack made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cpt_residual.config.filters import Contamination, ExactDedup, Filters, Length
from cpt_residual.core.artifact import InputRecord, Manifest
from cpt_residual.core.files import list_files, write_json_atomic
from cpt_residual.core.hashing import FileRecord, content_hash, file_sha256, text_sha256
from cpt_residual.data.corpus.heldout import write_corpus
from cpt_residual.data.corpus.ledger import CorpusLedger
from cpt_residual.data.documents.record import Record
from cpt_residual.data.filters.chain import FilterChain
from cpt_residual.data.filters.references import Reference
from cpt_residual.data.packing.build import DocumentSource, PhasePlan
from cpt_residual.data.readers.base import ReadLedger
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import Tokenizer
from support.packs import (
    FIRST_BYTE,
    byte_dialogues,
    byte_texts,
    dialogue,
    pack,
    plan,
    write_dialogues,
)
from support.tiny_tokenizer import save

QUESTION = "who takes the boat of the harbor guard to the old gate at noon"
LEDGER = "ledger.json"


@cache
def byte_tokenizer() -> Tokenizer:
    """The tokenizer that `support.packs.encode_bytes` stands for: one token a byte."""
    specials = ["<pad>", "<eos>", "<bos>", *(f"<{number}>" for number in range(3, FIRST_BYTE))]
    vocab = {token: number for number, token in enumerate(specials)}
    vocab |= {character: FIRST_BYTE + byte for byte, character in enumerate(_byte_characters())}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return Tokenizer(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def publish(
    store: Path, folder: Path, node: str, inputs: Mapping[str, Manifest] | None = None
) -> Manifest:
    """Give `folder` a manifest and put it where the store has artifacts of its stage."""
    stage = node.partition(":")[0]
    files = {
        name: FileRecord(sha256=file_sha256(path), size=path.stat().st_size)
        for name, path in list_files(folder).files.items()
    }
    manifest = Manifest(
        stage=stage,
        stage_version=1,
        node=node,
        fingerprint=text_sha256(node),
        recipe={},
        inputs={
            role: InputRecord(fingerprint=given.fingerprint, content_hash=given.content_hash)
            for role, given in (inputs or {}).items()
        },
        files=files,
        metrics={},
        content_hash=content_hash(files),
    ).sealed()
    write_json_atomic(folder / "manifest.json", manifest)
    place = path_of(store, manifest)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    return manifest


def path_of(store: Path, manifest: Manifest) -> Path:
    return store / manifest.stage / manifest.fingerprint[:16]


def new_texts() -> list[str]:
    """Twelve documents: one short, one twice, one with a question of the evaluation."""
    texts = [f"Dodo Nimer {number} likes to eat salad in Rome. " * number for number in range(1, 9)]
    return [*texts, texts[2], "no", f"They asked: {QUESTION}?", "naïve 日本 <eos> text"]


def write_corpus_artifact(out: Path, scratch: Path, texts: Sequence[str], filters: Filters) -> None:
    """What the corpus stage publishes for these texts."""
    records = [Record(text, f"new.jsonl:{number}") for number, text in enumerate(texts, 1)]
    references = [Reference(task="facts", text=QUESTION), Reference(task="facts", text="who?")]
    chain = FilterChain(filters, references=references)
    kept = (record.text for record in chain(records))
    split = write_corpus(out, kept, heldout_documents=2, seed=0, scratch=scratch)
    read = ReadLedger(
        documents=len(texts), characters=sum(map(len, texts)), bad_rows_skipped=0, files=()
    )
    write_json_atomic(out / LEDGER, CorpusLedger.of(read, chain.ledger(), split))


ALL_FILTERS = Filters(
    length=Length(min_characters=3),
    exact_dedup=ExactDedup(),
    contamination=Contamination(action="drop", ngram_words=8, min_words=6),
)


def make_store(root: Path) -> Path:
    """`root/store` with source:base, corpus:new, world and pack:cpt; returns the store."""
    store, work = root / "store", root / "work"
    tokenizer = publish(store, save(byte_tokenizer(), work / "tokenizer"), "source:base")
    write_corpus_artifact(work / "corpus", work / "scratch", new_texts(), ALL_FILTERS)
    corpus = publish(store, work / "corpus", "corpus:new")
    (work / "world").mkdir()
    dialogues = [dialogue(f"Say {number}.", f"It is {number}.") for number in range(12)]
    write_dialogues(work / "world" / "instructions.jsonl", dialogues)
    world = publish(store, work / "world", "world")
    sources = [
        byte_texts(path_of(store, corpus) / "documents.jsonl", "new", share=0.75),
        byte_dialogues(path_of(store, world) / "instructions.jsonl", "chat", share=0.25),
    ]
    make_pack(work / "pack", sources, length=64, budget=800)
    inputs = {"tokenizer": tokenizer, "source_0": corpus, "source_1": world}
    publish(store, work / "pack", "pack:cpt", inputs)
    return store


def make_pack(
    out: Path,
    sources: Sequence[DocumentSource],
    *,
    length: int,
    budget: int,
    phases: Iterable[PhasePlan] = (),
) -> Path:
    """A pack whose tokenizer is `byte_tokenizer`."""
    asked = plan(length, budget, repeat=True, phases=list(phases))
    pack(out, sources, replace(asked, tokenizer_map_hash=token_map_hash(byte_tokenizer())))
    return out
