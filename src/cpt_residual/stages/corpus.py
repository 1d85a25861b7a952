"""Documents of the user's files or of a hub data set, checked, with some held out of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cpt_residual.config.corpora import HubCorpus, LocalCorpus
from cpt_residual.config.frozen import Frozen
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, ProgressReport, RunContext, Stage

__all__ = ["DOCUMENTS_FILE", "HELDOUT_FILE", "Corpus", "HubRecipe", "LocalRecipe"]

DOCUMENTS_FILE = "documents.jsonl"
HELDOUT_FILE = "heldout.jsonl"

_LOCAL_BYTES_PER_SECOND = 40e6
_HUB_BYTES_PER_SECOND = 5e6
_REPORT_EVERY = 1000


class LocalRecipe(Frozen):
    """The files by kind and content, in order; their names and places are not part of it."""

    kind: Literal["local"] = "local"
    files: tuple[tuple[str, str], ...]  # (suffix, sha256)
    byte_order_mark: Literal["dropped"] = "dropped"  # it was part of a .txt file's text once
    text_field: str
    heldout_documents: int
    seed: int


class HubRecipe(Frozen):
    """The data set by commit."""

    kind: Literal["hub"] = "hub"
    repo: str
    config: str | None
    split: str
    revision: str
    text_field: str
    heldout_documents: int
    max_characters: int
    seed: int


@dataclass(frozen=True)
class Corpus:
    """`documents.jsonl`, `heldout.jsonl` and `ledger.json` of one corpus.

    file_hashes: sha256 by path of every local file, in the order of
    `data.local.resolve_files(corpus.files)`; empty for a hub corpus.
    """

    key: str
    corpus: LocalCorpus | HubCorpus
    file_hashes: Mapping[str, str]
    seed: int

    name: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1

    @property
    def node(self) -> str:
        return f"corpus:{self.key}"

    def recipe(self) -> LocalRecipe | HubRecipe:
        # Without held-out documents the seed changes nothing.
        seed = self.seed if self.corpus.heldout_documents else 0
        if isinstance(self.corpus, HubCorpus):
            fields = self.corpus.model_dump(exclude={"kind"})
            return HubRecipe(**fields, seed=seed)
        return LocalRecipe(
            files=tuple((Path(name).suffix, value) for name, value in self.file_hashes.items()),
            text_field=self.corpus.text_field,
            heldout_documents=self.corpus.heldout_documents,
            seed=seed,
        )

    def inputs(self) -> Mapping[str, Stage]:
        return {}

    def cost(self) -> Cost:
        num_bytes = self._expected_bytes()
        hub = isinstance(self.corpus, HubCorpus)
        rate = _HUB_BYTES_PER_SECOND if hub else _LOCAL_BYTES_PER_SECOND
        return Cost(seconds=num_bytes / rate, disk_bytes=num_bytes)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        del inputs
        from cpt_residual.data.heldout import write_corpus

        texts = _reported(self._texts(), self._expected_bytes(), ctx.progress)
        ledger = write_corpus(
            work / "out",
            texts,
            heldout_documents=self.corpus.heldout_documents,
            seed=self.seed,
            scratch=work / "scratch",
        )
        return dict(ledger.model_dump())

    def _texts(self) -> Iterator[str]:
        if isinstance(self.corpus, HubCorpus):
            from cpt_residual.data.hub import read_hub

            return read_hub(self.corpus)
        from cpt_residual.data.local import check_unchanged, read_local, resolve_files

        files = resolve_files(self.corpus.files)
        check_unchanged(files, self.file_hashes)
        return read_local(files, text_field=self.corpus.text_field)

    def _expected_bytes(self) -> int:
        """About how much there is to read; a file that went away counts nothing."""
        if isinstance(self.corpus, HubCorpus):
            return self.corpus.max_characters
        files = [Path(name) for name in self.file_hashes]
        return sum(path.stat().st_size for path in files if path.is_file())


def _reported(texts: Iterable[str], expected: int, progress: ProgressReport) -> Iterator[str]:
    """Pass `texts` on and report characters; the total is a guess until the end."""
    done = 0
    for number, text in enumerate(texts, start=1):
        done += len(text)
        if number % _REPORT_EVERY == 0:
            progress(done, max(done, expected), "characters")
        yield text
    progress(done, done, "characters")
