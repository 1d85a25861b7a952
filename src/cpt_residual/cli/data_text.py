"""What `data inspect` says of a pack and of a corpus, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from cpt_residual.cli.sample_text import show_documents, show_rows
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.checks import Check
from cpt_residual.data.inspection.corpus import CorpusInspection
from cpt_residual.data.inspection.lengths import LengthBin, LengthSummary
from cpt_residual.data.inspection.pack import PackInspection
from cpt_residual.launch.visible import visible

_BAR = 40
_FILES = 10
_STYLES = {"agrees": "green", "differs": "bold red", "not checked": "dim"}
_SHORT = "tokenizer_map_hash"  # as every sha256 shown by its first digits


def show_pack(out: Console, found: PackInspection, *, full: bool) -> None:
    """`full`: samples without anything left out."""
    _title(out, found)
    _fields(out, found.ledger | {"tokenizer": found.tokenizer or "not opened"})
    sources = found.ledger.get("sources")
    if isinstance(sources, list):
        _heading(out, "sources, by the ledger")
        _table(out, _transposed([source for source in sources if isinstance(source, dict)]))
    _phases(out, found)
    named = [(source.corpus, source.lengths) for source in found.sources if source.lengths]
    _lengths(out, "documents", "tokens", named, " (of a document that is cut: what is in the pack)")
    out.print()
    out.print(Text(f"  documents whose end is not in the pack: {found.unfinished_documents:,}"))
    for corpus in found.corpora:
        if corpus.filters:
            _filters(out, f"corpus {visible(corpus.corpus)}", corpus.filters)
    if found.samples:
        _heading(out, f"{len(found.samples)} rows")
        show_rows(out, found.samples, found.num_rows, full=full)
    _checks(out, found.checks)


def show_corpus(out: Console, found: CorpusInspection, *, full: bool) -> None:
    """`full`: samples without anything left out."""
    _title(out, found)
    _fields(out, found.ledger)
    named = [(file.name, file.lengths) for file in found.files if file.lengths]
    _lengths(out, "documents", "characters", named)
    if found.filters:
        _filters(out, "the corpus", found.filters)
    _details(out, found.ledger)
    for file in found.files:
        if file.samples:
            _heading(out, f"{len(file.samples)} of {file.documents:,} documents of {file.name}")
            show_documents(out, file.samples, full=full)
    _checks(out, found.checks)


def _title(out: Console, found: PackInspection | CorpusInspection) -> None:
    what = found.fingerprint[:12] if found.fingerprint else "no manifest"
    _heading(out, f"{found.node or found.kind} ({what})  {found.path}")


def _heading(out: Console, text: str) -> None:
    out.print()
    out.print(Text(visible(text), "bold"), soft_wrap=True)


def _fields(out: Console, ledger: Mapping[str, JsonValue]) -> None:
    """Every plain field of a ledger, as it is named there."""
    plain = {
        name: _value(name, value)
        for name, value in ledger.items()
        if not isinstance(value, list | dict)
    }
    width = max((len(name) for name in plain), default=0)
    for name, value in plain.items():
        out.print(Text(f"  {visible(name):<{width}}  {value}"), soft_wrap=True)


def _phases(out: Console, found: PackInspection) -> None:
    """Each phase of a curriculum: where it begins and what it holds."""
    phases = found.ledger.get("phases")
    if not isinstance(phases, list) or not phases:
        return
    rows = [["phase", "share", "first row", "rows", *(visible(s.corpus) for s in found.sources)]]
    for number, phase in enumerate(phases, start=1):
        fields = phase if isinstance(phase, dict) else {}
        by_source = fields.get("tokens_by_source")
        numbers = [fields.get(name) for name in ("share", "first_row", "rows")]
        numbers += by_source if isinstance(by_source, list) else []
        rows.append([f"{number}", *(_value("", value) for value in numbers)])
    _heading(out, "phases, and the tokens of each source")
    _table(out, rows)


def _details(out: Console, ledger: Mapping[str, JsonValue]) -> None:
    """The files that a corpus was read from, and what was left out of them."""
    files, bad = ledger.get("files"), ledger.get("first_bad_rows")
    if isinstance(files, list) and files:
        fields = [file for file in files[:_FILES] if isinstance(file, dict)]
        more = f", the first {_FILES}" if len(files) > _FILES else ""
        _heading(out, f"{len(files):,} files were read{more}")
        rows = [[_value(name, value) for name, value in file.items()] for file in fields]
        _table(out, [[visible(name) for name in fields[0]], *rows] if fields else [])
    if isinstance(bad, list) and bad:
        _heading(out, "rows that could not be used and were left out")
        for line in bad:
            out.print(Text(f"  {visible(str(line))}"), soft_wrap=True)


def _value(name: str, value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return "none"
    text = visible(str(value))
    return text[:12] if name == _SHORT or name.endswith("sha256") else text


def _transposed(rows: Sequence[Mapping[str, JsonValue]]) -> list[list[str]]:
    """Fields down, sources across; what is a list or an object is left to --json."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table: list[list[str]] = []
    for name in names:
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, list | dict) for value in values):
            table.append([visible(name), *(_value(name, value) for value in values)])
    return table


def _table(out: Console, rows: Sequence[Sequence[str]], *, words: int = 0) -> None:
    """The first column to the left, and the last when it is `words`; the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip_longest(*rows, fillvalue="")]
    left = {0, len(widths) - words}
    for row in rows:
        cells = [
            f"{cell:<{width}}" if at in left else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        out.print(Text(f"  {'  '.join(cells)}".rstrip()), soft_wrap=True)


def _lengths(
    out: Console, what: str, unit: str, named: Sequence[tuple[str, LengthSummary]], note: str = ""
) -> None:
    if not named:
        return
    _heading(out, f"lengths of {what}, in {unit}{note}")
    names = ("", what, unit, "shortest", "median", "mean", "90 %", "99 %", "longest")
    rows = [list(names)]
    for name, found in named:
        numbers = (found.count, found.total, found.shortest, found.median)
        ends = (found.p90, found.p99, found.longest)
        rows.append(
            [
                visible(name),
                *(f"{number:,}" for number in numbers),
                f"{found.mean:,.1f}",
                *(f"{number:,}" for number in ends),
            ]
        )
    _table(out, rows)
    out.print()
    bins = [bin_ for _, found in named for bin_ in found.bins]
    _table(out, _histogram(bins, what, unit), words=1)


def _histogram(bins: Sequence[LengthBin], what: str, unit: str) -> list[list[str]]:
    """One line for each factor of two."""
    octaves: dict[int, tuple[int, int]] = {}
    for bin_ in bins:
        octave = bin_.first.bit_length()
        count, total = octaves.get(octave, (0, 0))
        octaves[octave] = (count + bin_.count, total + bin_.total)
    most = max(count for count, _ in octaves.values())
    whole = sum(total for _, total in octaves.values()) or 1
    rows = [["length", what, f"{unit}, %", ""]]
    for octave in range(min(octaves), max(octaves) + 1):
        count, total = octaves.get(octave, (0, 0))
        first, last = (1 << octave) >> 1, (1 << octave) - 1
        bar = "#" * -(-_BAR * count // most)
        length = f"{first:,}" if first == last else f"{first:,} - {last:,}"
        rows.append([length, f"{count:,}", f"{100 * total / whole:.1f}", bar])
    return rows


def _filters(out: Console, name: str, filters: Sequence[FilterLedger]) -> None:
    _heading(out, f"filters over {name}")
    rows = [["pass", "documents in", "out", "dropped", "characters in", "out", "why"]]
    for one in filters:
        why = ", ".join(
            f"{drop.reason.replace('_', ' ')} {drop.documents:,}"
            for drop in one.dropped
            if drop.documents
        )
        dropped = one.documents_in - one.documents_out
        counts = (one.documents_in, one.documents_out, dropped)
        characters = (one.characters_in, one.characters_out)
        numbers = [f"{number:,}" for number in (*counts, *characters)]
        rows.append([visible(one.name), *numbers, visible(why)])
    _table(out, rows, words=1)
    tasks = list(_contamination(filters))
    if tasks:
        _heading(out, f"questions of the evaluation in {name}")
        _table(
            out,
            [["task", "questions", "looked for", "found", "%", "documents"], *tasks],
        )


def _contamination(filters: Sequence[FilterLedger]) -> Iterator[list[str]]:
    for task in (task for one in filters for task in one.tasks):
        share = 100 * task.questions_found / max(1, task.questions_checked)
        yield [
            visible(task.task),
            f"{task.questions:,}",
            f"{task.questions_checked:,}",
            f"{task.questions_found:,}",
            f"{share:.2f}",
            f"{task.documents:,}",
        ]


def _checks(out: Console, checks: Sequence[Check]) -> None:
    _heading(out, "checks")
    for check in checks:
        line = Text("  ")
        line.append(f"{check.state:<12}", _STYLES[check.state])
        line.append(visible(f"{check.name}: {check.detail}"))
        out.print(line, soft_wrap=True)
