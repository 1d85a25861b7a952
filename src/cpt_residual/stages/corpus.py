"""Documents of the user's files or of a hub data set, read and filtered, with some held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.config.corpora import BadLines, HubCorpus, LocalCorpus
from cpt_residual.config.filters import Filters
from cpt_residual.core.rates import HUB_TEXT_BYTES_PER_SECOND, LOCAL_TEXT_BYTES_PER_SECOND
from cpt_residual.core.stage import (
    ONE_CORE,
    ArtifactRef,
    Cost,
    Metrics,
    ProgressReport,
    Resources,
    RunContext,
    Stage,
)
from cpt_residual.data.documents.file_names import LEDGER_FILE
from cpt_residual.data.readers.files import suffix_of

if TYPE_CHECKING:
    from cpt_residual.data.corpus.ledger import CorpusLedger
    from cpt_residual.data.documents.record import Record
    from cpt_residual.data.filters.chain import FilterChain
    from cpt_residual.data.readers.hub import HubReader
    from cpt_residual.data.readers.local import LocalReader

_UNPACKED = 3
"""Text is about so many times as large as its compressed file."""
_REPORT_EVERY = 1000


class FiltersRecipe(Frozen):
    """The filters that are on, all their settings, and the versions of libraries that judge."""

    settings: dict[str, JsonValue]
    libraries: dict[str, str]


class LocalRecipe(Frozen):
    """The files by kind and content, in order; their names and places are not part of it."""

    kind: Literal["local"] = "local"
    files: tuple[tuple[str, str], ...]  # (suffix, sha256)
    byte_order_mark: Literal["dropped"] = "dropped"  # it was part of a .txt file's text once
    text_field: str
    bad_lines: BadLines
    heldout_documents: int
    filters: FiltersRecipe = Field(serialization_alias="passes")
    seed: int


class HubRecipe(Frozen):
    """The data set by commit."""

    kind: Literal["hub"] = "hub"
    repo: str
    config: str | None
    split: str
    revision: str
    text_field: str
    bad_lines: BadLines
    heldout_documents: int
    max_characters: int
    filters: FiltersRecipe = Field(serialization_alias="passes")
    seed: int


@dataclass(frozen=True)
class Corpus:
    """`documents.jsonl`, `heldout.jsonl` and `ledger.json` of one corpus.

    file_hashes: sha256 by path of every local file, in the order of `resolve_files(corpus.files)`
    (`data.readers.files`); empty for a hub corpus. references: the questions of the evaluation,
    where the filters check for contamination.
    """

    key: str
    corpus: LocalCorpus | HubCorpus
    file_hashes: Mapping[str, str]
    seed: int
    references: Stage | None = None

    name: ClassVar[str] = "corpus"
    version: ClassVar[int] = 2

    @property
    def node(self) -> str:
        return f"corpus:{self.key}"

    @property
    def needs_network(self) -> bool:
        """Hub data sets are streamed while the corpus is built."""
        return isinstance(self.corpus, HubCorpus)

    def recipe(self) -> LocalRecipe | HubRecipe:
        # Without held-out documents the seed changes nothing.
        seed = self.seed if self.corpus.heldout_documents else 0
        filters = _filters_recipe(self.corpus.filters)
        if isinstance(self.corpus, HubCorpus):
            fields = self.corpus.model_dump(exclude={"kind", "filters"})
            return HubRecipe(**fields, filters=filters, seed=seed)
        return LocalRecipe(
            files=tuple((str(suffix_of(Path(p))), value) for p, value in self.file_hashes.items()),
            text_field=self.corpus.text_field,
            bad_lines=self.corpus.bad_lines,
            heldout_documents=self.corpus.heldout_documents,
            filters=filters,
            seed=seed,
        )

    def inputs(self) -> Mapping[str, Stage]:
        return {} if self.references is None else {"references": self.references}

    def cost(self) -> Cost:
        num_bytes = self._expected_bytes()
        rate = HUB_TEXT_BYTES_PER_SECOND if self.needs_network else LOCAL_TEXT_BYTES_PER_SECOND
        scratch = num_bytes if self.corpus.heldout_documents else 0
        return Cost(seconds=num_bytes / rate, disk_bytes=num_bytes, scratch_bytes=scratch)

    def resources(self) -> Resources:
        return ONE_CORE

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.core.files import write_json_atomic
        from cpt_residual.data.corpus.heldout import write_corpus
        from cpt_residual.data.corpus.ledger import CorpusLedger

        reader, chain = self._reader(), self._chain(inputs)
        read = _reported(reader, self._expected_bytes(), ctx.progress)
        split = write_corpus(
            work / "out",
            (record.text for record in chain(read)),
            heldout_documents=self.corpus.heldout_documents,
            seed=self.seed,
            scratch=work / "scratch",
        )
        ledger = CorpusLedger.of(reader.ledger(), chain.ledger(), split)
        write_json_atomic(work / "out" / LEDGER_FILE, ledger)
        return _metrics(ledger)

    def _reader(self) -> HubReader | LocalReader:
        from cpt_residual.data.readers.base import Fields

        date = self.corpus.filters.date
        fields = Fields(text=self.corpus.text_field, date=date.field if date else None)
        if isinstance(self.corpus, HubCorpus):
            from cpt_residual.data.readers.hub import HubReader

            return HubReader(self.corpus, fields=fields)
        from cpt_residual.data.readers.files import resolve_files
        from cpt_residual.data.readers.local import LocalReader

        files = resolve_files(self.corpus.files)
        return LocalReader(files, self.file_hashes, fields=fields, bad_lines=self.corpus.bad_lines)

    def _chain(self, inputs: Mapping[str, ArtifactRef]) -> FilterChain:
        from cpt_residual.data.filters.chain import FilterChain
        from cpt_residual.data.filters.references import REFERENCES_FILE, read_references

        given = inputs.get("references")
        references = read_references(given.path / REFERENCES_FILE) if given else None
        return FilterChain(self.corpus.filters, references=references)

    def _expected_bytes(self) -> int:
        """About how much text there is to read; a file that went away counts nothing."""
        if isinstance(self.corpus, HubCorpus):
            return self.corpus.max_characters
        files = [Path(name) for name in self.file_hashes]
        return sum(_text_bytes(path) for path in files if path.is_file())


def _filters_recipe(filters: Filters) -> FiltersRecipe:
    from cpt_residual.data.filters.chain import library_versions

    settings = filters.model_dump(mode="json", exclude_none=True)
    return FiltersRecipe(settings=settings, libraries=library_versions(filters))


def _text_bytes(path: Path) -> int:
    packed = path.suffix.lower() in (".gz", ".zst", ".parquet")
    return path.stat().st_size * (_UNPACKED if packed else 1)


def _reported(
    records: Iterable[Record], expected: int, progress: ProgressReport
) -> Iterator[Record]:
    """Pass `records` on and report characters; the total is a guess until the end."""
    done = 0
    for number, record in enumerate(records, start=1):
        done += len(record.text)
        if number % _REPORT_EVERY == 0:
            progress(done, max(done, expected), "characters")
        yield record
    progress(done, done, "characters")


def _metrics(ledger: CorpusLedger) -> Metrics:
    """The ledger's own numbers, and per filter and task what went or was found."""
    metrics: Metrics = {
        name: value for name, value in ledger.model_dump().items() if isinstance(value, int)
    }
    for each in ledger.filters:
        metrics[f"dropped/{each.name}"] = each.documents_in - each.documents_out
        for task in each.tasks:
            metrics[f"contaminated/{task.task}"] = task.documents
    return metrics
