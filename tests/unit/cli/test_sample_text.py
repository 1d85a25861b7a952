"""Rows on a terminal and as plain text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from cpt_residual.cli.data_text import show_rows
from cpt_residual.data.inspection.samples import Run, SampleRow, Segment
from cpt_residual.launch.visible import visible


def row(*segments: Segment) -> SampleRow:
    return SampleRow(
        number=3, source="new", num_tokens=9, num_labels=5, decoded=True, segments=segments
    )


def segment(*runs: Run) -> Segment:
    number = sum(run.num_tokens for run in runs)
    return Segment(kind="document", first_column=0, num_tokens=number, num_labels=2, runs=runs)


DOCUMENT = segment(
    Run(kind="bos", text="<s>", num_tokens=1),
    Run(kind="masked", text="ask", num_tokens=3),
    Run(kind="text", text="answer", num_tokens=2),
    Run(kind="eos", text="</s>", num_tokens=1),
)


def shown(sample: SampleRow, *, terminal: bool, full: bool = False) -> str:
    out = StringIO()
    colours = "standard" if terminal else None
    console = Console(file=out, force_terminal=terminal, width=100, color_system=colours)
    show_rows(console, [sample], 7, full=full)
    return out.getvalue()


def test_markers_as_plain_text() -> None:
    text = shown(row(DOCUMENT), terminal=False)
    assert "row 3 of 7: new, 9 tokens, 5 labels, 1 segment" in text
    assert "[BOS]\u27e6ask\u27e7answer[EOS]" in text
    assert "\x1b" not in text


def test_colours_on_a_terminal() -> None:
    text = shown(row(DOCUMENT), terminal=True)
    assert "\x1b[2mask\x1b[0m" in text  # dim
    assert "\x1b[1;36m[EOS]\x1b[0m" in text
    assert "\u27e6" not in text


def test_long_segments_and_many_are_cut_in_the_middle_and_counted() -> None:
    long = segment(Run(kind="text", text="a" * 300 + "b" * 700 + "c" * 100, num_tokens=1100))
    text = shown(row(*[long] * 20), terminal=False)
    assert "... 700 characters left out ..." in text
    assert "bb" not in text
    assert text.count("cc") > 0
    assert "... 13 segments left out ..." in text
    full = shown(row(*[long] * 20), terminal=False, full=True)
    assert "left out" not in full
    assert full.count("b") >= 20 * 700


def test_what_acts_on_a_terminal_is_shown_by_its_code() -> None:
    assert visible("a\tb\nc\r\x1b[0m") == "a\u21e5b\u21b5c\u240d\u241b[0m"
    assert (
        visible("\x00\x9b\u202e\u2028\ufeff\ud800") == "\\u0000\\u009b\\u202e\\u2028\\ufeff\\ud800"
    )
    assert visible("naïve 日本 👩\u200d🚀 […]") == "naïve 日本 👩\u200d🚀 […]"
