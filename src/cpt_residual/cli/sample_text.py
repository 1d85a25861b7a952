"""Rows of a pack and documents of a corpus on a terminal, or as plain text with markers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from cpt_residual.data.inspection.corpus import SampleDocument
from cpt_residual.data.inspection.samples import Run, RunKind, SampleRow, Segment
from cpt_residual.launch.visible import visible

_HEAD, _TAIL = 300, 100  # characters shown of a long segment
_FIRST, _LAST = 5, 2  # segments shown of a row with many
_STYLES: dict[RunKind, str] = {
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
        text.append(shown, _STYLES[kind])
    left_out = len(text) - _HEAD - _TAIL
    if left_out > 0 and not full:
        between = Text(f" ... {left_out:,} characters left out ... ", "italic")
        text = Text.assemble(text[:_HEAD], between, text[-_TAIL:])
    out.print(Padding(text, (0, 0, 0, 4), expand=False), soft_wrap=False)
