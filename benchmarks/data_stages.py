"""The stages of `data.py`: text and tokenizer as inputs, and the pack that is measured."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cpt_residual.config.corpora import LocalCorpus
from cpt_residual.config.packs import Pack, PackSource
from cpt_residual.config.schema import Architecture
from cpt_residual.core.build import build_node
from cpt_residual.core.graph import Graph
from cpt_residual.core.measure import usable_cores
from cpt_residual.core.stage import RunContext, Stage, no_progress
from cpt_residual.core.store import Store
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE
from cpt_residual.data.readers.files import resolve_files
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.init import Init
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage

SEQUENCE_LENGTH = 4096


@dataclass(frozen=True)
class Workplace:
    """A folder with `text/` (folders of JSON lines) and `store/` (what the stages make of them).
    `vocab_size`: of the tokenizer, which is trained on `text/sample`."""

    folder: Path
    vocab_size: int

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def text(self, name: str) -> Path:
        return self.folder / "text" / name

    def corpus(self, name: str) -> Corpus:
        """The corpus stage over `text/name`."""
        corpus = LocalCorpus(kind="local", files=[str(self.text(name))])
        hashes = {
            str(path): self.store.hash_cache.sha256(path) for path in resolve_files(corpus.files)
        }
        return Corpus(name, corpus, hashes, seed=0)

    def tokenizer(self) -> Init:
        """A pico model with a tokenizer of a large one's size."""
        architecture = Architecture(
            vocab_size=self.vocab_size,
            hidden_size=8,
            num_layers=1,
            num_heads=1,
            num_key_value_heads=1,
            intermediate_size=8,
            max_position_embeddings=SEQUENCE_LENGTH,
        )
        return Init(
            "tokenizer", architecture, CorpusInput(self.corpus("sample"), DOCUMENTS_FILE), 0
        )

    def pack(self, name: str, *, token_budget: int) -> PackStage:
        """The stage that packs the corpus `name`."""
        return PackStage(
            key=name,
            pack=Pack(
                tokenizer="tokenizer",
                sequence_length=SEQUENCE_LENGTH,
                token_budget=token_budget,
                sources=[PackSource(corpus=name)],
            ),
            tokenizer=self.tokenizer(),
            template=None,
            sources=(CorpusInput(self.corpus(name), DOCUMENTS_FILE),),
            seed=0,
            available_cores=usable_cores(),
        )

    def build(self, stage: Stage) -> Path:
        """The folder of the stage's artifact, made now if it is missing; so are its inputs."""
        graph, store = Graph.of([stage]), self.store
        path = self.folder
        for node in graph.nodes:
            ctx = RunContext(
                run_dir=self.folder, threads=node.stage.resources().cores, progress=no_progress
            )
            path = build_node(store, graph, node, ctx).ref.path
        return path

    def forget(self, stage: Stage) -> None:
        """Remove the stage's artifact."""
        node = Graph.of([stage])[stage.node]
        shutil.rmtree(self.store.path_of(node), ignore_errors=True)

    @classmethod
    def of(cls, folder: str, vocab_size: str) -> Self:
        """From a command line."""
        return cls(Path(folder), int(vocab_size))


def main() -> None:
    """`python data_stages.py FOLDER VOCAB_SIZE NAME TOKEN_BUDGET REPORT`: build a pack anew.

    `seconds` are those of the whole stage as a run builds it: importing what it needs, looking
    its inputs over, encoding, packing, hashing, publishing.
    """
    folder, vocab_size, name, token_budget, report = sys.argv[1:]
    place = Workplace.of(folder, vocab_size)
    stage = place.pack(name, token_budget=int(token_budget))
    place.forget(stage)
    started = time.perf_counter()
    path = place.build(stage)
    seconds = time.perf_counter() - started
    ledger = json.loads((path / "pack.json").read_text())
    found = {"seconds": seconds, "tokens": ledger["tokens"], "rows_sha256": ledger["rows_sha256"]}
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
