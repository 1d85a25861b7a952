"""A corpus as it is: its ledger, its documents counted beside it, lengths, filters, samples."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.core.artifact import Manifest
from cpt_residual.data.documents import chat_characters, parse_messages, parse_text
from cpt_residual.data.file_names import DOCUMENTS_FILE, HELDOUT_FILE, LEDGER_FILE
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.balance import balance_check, filters_of, read_corpus_ledger
from cpt_residual.data.inspection.checks import Check, compared, manifest_check
from cpt_residual.data.inspection.lengths import Lengths, LengthSummary
from cpt_residual.data.inspection.looking import Looking
from cpt_residual.data.problems import BadDocumentError
from cpt_residual.errors import CorpusError

_REPORT_EVERY = 2000

Form = Literal["text", "chat"]
Read = Callable[[bytes, str], str]


class SampleDocument(Frozen):
    """One document; `number` counts from 1, as lines do."""

    number: int
    text: str


class DocumentsFile(Frozen):
    """One file of documents; lengths are in characters."""

    name: str
    form: Form
    documents: int
    characters: int
    lengths: LengthSummary | None
    samples: tuple[SampleDocument, ...]


class CorpusInspection(Frozen):
    """ledger: ledger.json, or for a world the counts in its manifest; filters: what was done to the
    documents before, in order."""

    kind: Literal["corpus", "world"]
    path: str
    node: str | None
    fingerprint: str | None
    ledger: dict[str, JsonValue]
    files: tuple[DocumentsFile, ...]
    filters: tuple[FilterLedger, ...]
    checks: tuple[Check, ...]


def inspect_corpus(path: Path, manifest: Manifest | None, looking: Looking) -> CorpusInspection:
    """Read every document in `path`, one at a time.

    Raises CorpusError for a line that is no document, CorruptArtifactError for a bad ledger.
    """
    is_corpus = (path / LEDGER_FILE).is_file()
    ledger = read_corpus_ledger(path) if is_corpus else _world_ledger(manifest)
    filters = filters_of(ledger, path)
    names = [DOCUMENTS_FILE, HELDOUT_FILE] if is_corpus else []
    places = [path / name for name in names if (path / name).is_file()]
    places = places or sorted(path.glob("*.jsonl"))
    total = sum(place.stat().st_size for place in places)
    done = _Progress(looking, total)
    files = tuple(_read_file(place, looking, done) for place in places)
    counts = _corpus_counts(files) if is_corpus else _world_counts(files)
    recorded = {name: value for name, value in ledger.items() if type(value) is int}
    return CorpusInspection(
        kind="corpus" if is_corpus else "world",
        path=str(path),
        node=manifest.node if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        ledger=ledger,
        files=files,
        filters=filters,
        checks=(
            compared("documents and characters", counts, recorded),
            balance_check(ledger, filters),
            manifest_check(path, manifest, verify=looking.verify),
        ),
    )


@dataclass
class _Progress:
    """Bytes read of all files."""

    looking: Looking
    total: int
    done: int = 0

    def add(self, num_bytes: int, number: int) -> None:
        self.done += num_bytes
        if number % _REPORT_EVERY == 0 or self.done == self.total:
            self.looking.report(self.done, self.total, "bytes")


@dataclass
class _Reservoir:
    """A uniform sample of what is offered, in one pass (Vitter 1985, algorithm R)."""

    size: int
    rng: random.Random
    kept: list[SampleDocument] = field(default_factory=list[SampleDocument])

    def offer(self, number: int, text: str) -> None:
        if len(self.kept) < self.size:
            self.kept.append(SampleDocument(number=number, text=text))
        elif self.size and (at := self.rng.randrange(number)) < self.size:
            self.kept[at] = SampleDocument(number=number, text=text)


def _read_file(file: Path, looking: Looking, done: _Progress) -> DocumentsFile:
    lengths = Lengths()
    reservoir = _Reservoir(looking.rows, random.Random(f"{looking.seed}/{file.name}"))
    form: Form = "text"
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                form = "chat" if b'"messages"' in line and b'"text"' not in line else "text"
            place = f"{file.name}:{number}"
            try:
                num_characters, text = _document(line, place, form)
            except BadDocumentError as error:
                raise CorpusError(
                    f"{file} holds a line that is no document",
                    problems=[str(error)],
                    remedy="The artifact is damaged: delete it and run again to build it anew.",
                ) from error
            lengths.add(num_characters)
            reservoir.offer(number, text)
            done.add(len(line), number)
    summary = lengths.summary()
    return DocumentsFile(
        name=file.name,
        form=form,
        documents=summary.count if summary else 0,
        characters=summary.total if summary else 0,
        lengths=summary,
        samples=tuple(sorted(reservoir.kept, key=lambda document: document.number)),
    )


def _document(line: bytes, place: str, form: Form) -> tuple[int, str]:
    """Characters as the ledger counts them, and the text to show."""
    if form == "text":
        text = parse_text(line, place)
        return len(text), text
    messages = parse_messages(line, place)
    shown = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return chat_characters(messages), shown


def _corpus_counts(files: tuple[DocumentsFile, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        prefix = "" if file.name == DOCUMENTS_FILE else "heldout_"
        counts[f"{prefix}documents"] = file.documents
        counts[f"{prefix}characters"] = file.characters
    return counts


def _world_ledger(manifest: Manifest | None) -> dict[str, JsonValue]:
    return dict(manifest.metrics) if manifest else {}


def _world_counts(files: tuple[DocumentsFile, ...]) -> dict[str, int]:
    return {f"num_{file.name.removesuffix('.jsonl')}": file.documents for file in files}
