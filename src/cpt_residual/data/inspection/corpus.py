"""`data inspect` of a corpus: its ledger, its documents counted beside it, lengths, samples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.core.artifact import Manifest
from cpt_residual.core.stage import ProgressReport
from cpt_residual.data.corpus.ledger import CorpusLedger, read_corpus_ledger
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE, HELDOUT_FILE, LEDGER_FILE
from cpt_residual.data.documents.parsing import chat_characters, parse_messages, parse_text
from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.data.inspection.checks import Check, compared, manifest_check, some
from cpt_residual.data.inspection.lengths import LengthSummary, summary_of
from cpt_residual.errors import CorpusError

_REPORT_EVERY = 2000

Form = Literal["text", "chat"]


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
    """ledger: ledger.json, or for a world the counts in its manifest."""

    kind: Literal["corpus", "world"]
    path: str
    node: str | None
    fingerprint: str | None
    ledger: CorpusLedger | dict[str, JsonValue]
    files: tuple[DocumentsFile, ...]
    checks: tuple[Check, ...]


def inspect_corpus(
    path: Path,
    manifest: Manifest | None,
    *,
    samples: tuple[int, int],
    verify: bool,
    report: ProgressReport,
) -> CorpusInspection:
    """Read every document in `path`, one at a time; the arguments are those of `inspect_pack`.

    Raises CorpusError for a line that is no document, CorruptArtifactError for a bad ledger.
    """
    ledger = read_corpus_ledger(path) if (path / LEDGER_FILE).is_file() else None
    names = [name for name in (DOCUMENTS_FILE, HELDOUT_FILE) if (path / name).is_file()]
    places = sorted(path.glob("*.jsonl")) if ledger is None else [path / name for name in names]
    total, done = sum(place.stat().st_size for place in places), 0
    files: list[DocumentsFile] = []
    for place in places:
        files.append(_read_file(place, samples, partial(_report, report, done, total)))
        done += place.stat().st_size
    if ledger is None:
        counts = {f"num_{file.name.removesuffix('.jsonl')}": file.documents for file in files}
        recorded: dict[str, JsonValue] = dict(manifest.metrics) if manifest else {}
    else:
        counts = _corpus_counts(files)
        recorded = ledger.model_dump()
    integers = {name: value for name, value in recorded.items() if type(value) is int}
    return CorpusInspection(
        kind="corpus" if ledger else "world",
        path=str(path),
        node=manifest.node if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        ledger=ledger or recorded,
        files=tuple(files),
        checks=(
            compared("documents and characters", counts, integers),
            *([_balance(ledger)] if ledger else []),
            manifest_check(path, manifest, verify=verify),
        ),
    )


def _report(report: ProgressReport, before: int, total: int, read: int) -> None:
    report(before + read, total, "bytes")


def _read_file(
    file: Path, samples: tuple[int, int], report: Callable[[int], None]
) -> DocumentsFile:
    """Counts and a uniform sample of the documents, in one pass (Vitter 1985, algorithm R)."""
    wanted, seed = samples
    rng = random.Random(f"{seed}/{file.name}")
    lengths: Counter[int] = Counter()
    kept: list[SampleDocument] = []
    form: Form = "text"
    read = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                form = "chat" if b'"messages"' in line and b'"text"' not in line else "text"
            num_characters, text = _document(file, number, line, form)
            lengths[num_characters] += 1
            at = len(kept) if len(kept) < wanted else rng.randrange(number)
            if at < wanted:
                kept[at : at + 1] = [SampleDocument(number=number, text=text)]
            read += len(line)
            if number % _REPORT_EVERY == 0:
                report(read)
    report(read)
    summary = summary_of(lengths)
    return DocumentsFile(
        name=file.name,
        form=form,
        documents=summary.count if summary else 0,
        characters=summary.total if summary else 0,
        lengths=summary,
        samples=tuple(sorted(kept, key=lambda document: document.number)),
    )


def _document(file: Path, number: int, line: bytes, form: Form) -> tuple[int, str]:
    """Characters as the ledger counts them, and the text to show."""
    place = f"{file.name}:{number}"
    try:
        if form == "text":
            text = parse_text(line, place)
            return len(text), text
        messages = parse_messages(line, place)
    except BadDocumentError as error:
        raise CorpusError(
            f"{file} holds a line that is no document",
            problems=[str(error)],
            remedy="The artifact is damaged: delete it and run again to build it anew.",
        ) from error
    shown = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return chat_characters(messages), shown


def _corpus_counts(files: list[DocumentsFile]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        prefix = "" if file.name == DOCUMENTS_FILE else "heldout_"
        counts[f"{prefix}documents"] = file.documents
        counts[f"{prefix}characters"] = file.characters
    return counts


def _balance(ledger: CorpusLedger) -> Check:
    """Whether every document and character that came in went out or was counted as dropped."""
    name, wrong = "the ledger balances", ledger.imbalances()
    if wrong:
        return Check(name=name, state="differs", detail=some(wrong))
    detail = "every document and character that was read was kept, held out or dropped and counted"
    return Check(name=name, state="agrees", detail=detail)
