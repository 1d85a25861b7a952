"""Text output of `data inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from cpt_residual.data.corpus.ledger import CorpusLedger
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.checks import Check
from cpt_residual.data.inspection.corpus import CorpusInspection, SampleDocument
from cpt_residual.data.inspection.lengths import LengthSummary
from cpt_residual.data.inspection.pack import PackInspection
from cpt_residual.data.inspection.samples import Run, RunKind, SampleRow, Segment
from cpt_residual.data.packing.pack_ledger import PhaseLedger
from cpt_residual.launch.console import UserConsole
from cpt_residual.launch.visible import visible

_BAR = 40
_FILES = 10
_STYLES = {"agrees": "green", "differs": "bold red", "not checked": "dim"}
_HASHES = ("rows_sha256", "tokenizer_map_hash", "sha256")  # shown by their first digits


_HEAD, _TAIL = 300, 100  # characters shown of a long segment
_FIRST, _LAST = 5, 2  # segments shown of a row with many
_RUN_STYLES: dict[RunKind, str] = {
    "text": "",
    "masked": "dim",
    "bos": "bold green",
    "eos": "bold cyan",
    "special": "magenta",
}
_NAMES = {"document": "document", "continuation": "continues a document", "padding": "padding"}
_MARKS = {"document": ">", "continuation": "~", "padding": "."}
_TITLE = "bold"

Piece = tuple[RunKind, str]


def show_rows(out: Console, rows: Sequence[SampleRow], num_rows: int, *, full: bool) -> None:
    """`full`: nothing is left out."""
    if not rows:
        return
    masked = "dim: no label" if out.is_terminal else "\u27e6no label\u27e7"
    ids = "" if rows[0].decoded else "; token ids, because no tokenizer was found"
    legend = f"> document  ~ continues one of an earlier row  . padding  {masked}{ids}"
    out.print(Text(legend, "italic"), soft_wrap=True)
    for row in rows:
        out.print()
        out.print(
            Text(
                f"row {row.number:,} of {num_rows:,}: {visible(row.source)}, "
                f"{row.num_tokens:,} tokens, {row.num_labels:,} labels, {_count(row.segments)}",
                _TITLE,
            ),
            soft_wrap=True,
        )
        _show_segments(out, row.segments, full=full)


def show_documents(out: Console, samples: Sequence[SampleDocument], *, full: bool) -> None:
    """Documents of a corpus by their lines."""
    for sample in samples:
        size = f"{len(sample.text):,} characters"
        out.print(Text(f"  > line {sample.number:,}, {size}"))
        pieces: list[Piece] = [("text", sample.text)]
        _show_pieces(out, pieces, full=full)


def _count(segments: Sequence[Segment]) -> str:
    number = sum(segment.kind != "padding" for segment in segments)
    return "1 segment" if number == 1 else f"{number:,} segments"


def _show_segments(out: Console, segments: Sequence[Segment], *, full: bool) -> None:
    hidden = 0 if full else len(segments) - _FIRST - _LAST
    for at, segment in enumerate(segments):
        if hidden > 1 and at == _FIRST:
            out.print(Text(f"  ... {hidden:,} segments left out ...", "italic"))
        if hidden > 1 and _FIRST <= at < _FIRST + hidden:
            continue
        labels = "" if segment.kind == "padding" else f", {segment.num_labels:,} labels"
        out.print(
            Text(
                f"  {_MARKS[segment.kind]} {_NAMES[segment.kind]}, column "
                f"{segment.first_column:,}, {segment.num_tokens:,} tokens{labels}"
            )
        )
        pieces: list[Piece] = [(run.kind, _text_of(run)) for run in segment.runs]
        _show_pieces(out, pieces, full=full)


def _text_of(run: Run) -> str:
    if run.kind in ("bos", "eos"):
        return f"[{run.kind.upper()}]" * run.num_tokens
    return run.text


def _show_pieces(out: Console, pieces: Sequence[Piece], *, full: bool) -> None:
    """Without `full` the head and the tail of what is long, and how much lies between."""
    if not pieces:
        return
    text = Text()
    for kind, piece in pieces:
        shown = visible(piece)
        if kind == "masked" and not out.is_terminal:
            shown = f"\u27e6{shown}\u27e7"
        text.append(shown, _RUN_STYLES[kind])
    left_out = len(text) - _HEAD - _TAIL
    if left_out > 0 and not full:
        between = Text(f" ... {left_out:,} characters left out ... ", "italic")
        text = Text.assemble(text[:_HEAD], between, text[-_TAIL:])
    out.print(Padding(text, (0, 0, 0, 4), expand=False), soft_wrap=False)


def show_pack(out: UserConsole, found: PackInspection, *, full: bool) -> None:
    """`full`: samples without anything left out."""
    _title(out, found)
    ledger = found.ledger
    _fields(out, ledger.model_dump() | {"tokenizer": found.tokenizer or "not opened"})
    _heading(out, "sources, by the ledger")
    _table(out, zip(*_rows(ledger.sources), strict=True))
    if ledger.phases:
        _heading(out, "phases, and the tokens of each source")
        _table(out, _phases(ledger.phases, [source.corpus for source in found.sources]))
    named = {source.corpus: source.lengths for source in found.sources if source.lengths}
    _lengths(out, "segments", "tokens", named, " (a segment: a document, or its part in a row)")
    if found.samples:
        _heading(out, f"{len(found.samples)} rows")
        show_rows(out, found.samples, ledger.num_rows, full=full)
    _checks(out, found.checks)


def show_corpus(out: UserConsole, found: CorpusInspection, *, full: bool) -> None:
    """`full`: samples without anything left out."""
    _title(out, found)
    ledger = found.ledger
    _fields(out, ledger.model_dump() if isinstance(ledger, CorpusLedger) else ledger)
    named = {file.name: file.lengths for file in found.files if file.lengths}
    _lengths(out, "documents", "characters", named)
    if isinstance(ledger, CorpusLedger):
        _history(out, ledger)
    for file in found.files:
        if file.samples:
            _heading(out, f"{len(file.samples)} of {file.documents:,} documents of {file.name}")
            show_documents(out, file.samples, full=full)
    _checks(out, found.checks)


def _title(out: UserConsole, found: PackInspection | CorpusInspection) -> None:
    what = found.fingerprint[:12] if found.fingerprint else "no manifest"
    _heading(out, f"{found.node or found.kind} ({what})  {found.path}")


def _heading(out: UserConsole, text: str) -> None:
    out.print()
    out.print_text(visible(text), style="bold")


def _fields(out: UserConsole, ledger: Mapping[str, object]) -> None:
    """Every plain field of a ledger, as it is named there."""
    plain = {name: value for name, value in ledger.items() if _is_plain(value)}
    width = max((len(name) for name in plain), default=0)
    for name, value in plain.items():
        out.print_text(f"  {visible(name):<{width}}  {_value(name, value)}")


def _history(out: UserConsole, ledger: CorpusLedger) -> None:
    """Filters, questions of the evaluation that were found, and the files that were read."""
    if ledger.filters:
        _heading(out, "filters")
        header = ["filter", "documents in", "out", "dropped", "characters in", "out", "why"]
        _table(out, [header, *map(_filter, ledger.filters)], words=1)
    tasks = [task for each in ledger.filters for task in each.tasks]
    if tasks:
        _heading(out, "questions of the evaluation in the corpus")
        rows = [["task", "questions", "looked for", "found", "%", "documents"]]
        for task in tasks:
            share = 100 * task.questions_found / max(1, task.questions_checked)
            numbers = (task.questions, task.questions_checked, task.questions_found)
            found = [*(f"{number:,}" for number in numbers), f"{share:.2f}", f"{task.documents:,}"]
            rows.append([visible(task.task), *found])
        _table(out, rows)
    if ledger.files:
        more = f", the first {_FILES}" if len(ledger.files) > _FILES else ""
        _heading(out, f"{len(ledger.files):,} files were read{more}")
        _table(out, _rows(ledger.files[:_FILES]))
    if ledger.first_bad_rows:
        _heading(out, "rows that could not be used and were left out")
        for line in ledger.first_bad_rows:
            out.print_text(f"  {visible(line)}")


def _filter(one: FilterLedger) -> list[str]:
    why = [
        f"{drop.reason.replace('_', ' ')} {drop.documents:,}"
        for drop in one.dropped
        if drop.documents
    ]
    counts = (one.documents_in, one.documents_out, one.documents_in - one.documents_out)
    numbers = (*counts, one.characters_in, one.characters_out)
    return [visible(one.name), *(f"{number:,}" for number in numbers), visible(", ".join(why))]


def _phases(phases: Sequence[PhaseLedger], names: Sequence[str]) -> list[list[str]]:
    rows = [["phase", "share", "first row", "rows", *map(visible, names)]]
    for number, phase in enumerate(phases, start=1):
        numbers = (phase.first_row, phase.rows, *phase.tokens_by_source)
        rows.append([f"{number}", f"{phase.share}", *(f"{value:,}" for value in numbers)])
    return rows


def _rows(models: Sequence[BaseModel]) -> list[list[str]]:
    """The names of all plain fields, then their values in each of `models` (at least one)."""
    dumped = [model.model_dump() for model in models]
    names = [n for n in dumped[0] if all(_is_plain(fields[n]) for fields in dumped)]
    return [names, *([_value(name, fields[name]) for name in names] for fields in dumped)]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = "none" if value is None else visible(str(value))
    return text[:12] if name in _HASHES else text


def _table(out: UserConsole, rows: Iterable[Sequence[str]], *, words: int = 0) -> None:
    """The first column to the left, and the last when it is `words`; the others to the right."""
    rows = list(rows)
    num_columns = max(map(len, rows))
    rows = [[*row, *[""] * (num_columns - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, num_columns - words}
    for row in rows:
        cells = [
            f"{cell:<{width}}" if at in left else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.print_text(f"  {'  '.join(cells)}".rstrip())


def _lengths(
    out: UserConsole, what: str, unit: str, named: Mapping[str, LengthSummary], note: str = ""
) -> None:
    if not named:
        return
    _heading(out, f"lengths of {what}, in {unit}{note}")
    rows = [["", what, unit, "shortest", "median", "mean", "90 %", "99 %", "longest"]]
    for name, each in named.items():
        first = (each.count, each.total, each.shortest, each.median)
        last = (each.p90, each.p99, each.longest)
        numbers = [*(f"{n:,}" for n in first), f"{each.mean:,.1f}", *(f"{n:,}" for n in last)]
        rows.append([visible(name), *numbers])
    _table(out, rows)
    out.print()
    _table(out, _histogram(list(named.values()), what, unit), words=1)


def _histogram(found: Sequence[LengthSummary], what: str, unit: str) -> list[list[str]]:
    """One line for each factor of two, over all sources or files."""
    lines: dict[tuple[int, int], tuple[int, int]] = {}
    for bin_ in (bin_ for each in found for bin_ in each.bins):
        count, total = lines.get((bin_.first, bin_.last), (0, 0))
        lines[bin_.first, bin_.last] = (count + bin_.count, total + bin_.total)
    most = max(count for count, _ in lines.values())
    whole = sum(total for _, total in lines.values()) or 1
    rows = [["length", what, f"{unit}, %", ""]]
    for (first, last), (count, total) in sorted(lines.items()):
        length = f"{first:,}" if first == last else f"{first:,} - {last:,}"
        bar = "#" * -(-_BAR * count // most)
        rows.append([length, f"{count:,}", f"{100 * total / whole:.1f}", bar])
    return rows


def _checks(out: UserConsole, checks: Sequence[Check]) -> None:
    _heading(out, "checks")
    for check in checks:
        line = Text("  ")
        line.append(f"{check.state:<12}", _STYLES[check.state])
        line.append(visible(f"{check.name}: {check.detail}"))
        out.print(line, soft_wrap=True)
