"""Lines for people: prose at the width of a terminal, short lists of names."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from cpt_residual.launch.console import paragraph, some_of

TEXT = (
    "On held-out text base_cpt_residual needs 2.025 bits per byte, 46.3 % of the gain is kept; "
    "see /a/very/long/path/that/does/not/fit/into/a/line/of/forty/columns/report.md for the rest."
)


def shown(*, terminal: bool) -> str:
    file = StringIO()
    paragraph(
        Console(file=file, width=40, force_terminal=terminal, no_color=True, soft_wrap=True), TEXT
    )
    return file.getvalue()


def test_prose_breaks_between_words_on_a_terminal_and_paths_stay_whole() -> None:
    lines = shown(terminal=True).splitlines()
    assert " ".join(lines) == TEXT
    assert all(len(line) <= 40 or line.startswith("/a/very") for line in lines)
    assert not any(line.startswith("%") for line in lines)


def test_prose_is_one_line_elsewhere() -> None:
    assert shown(terminal=False) == f"{TEXT}\n"


def test_long_lists_of_names_are_cut() -> None:
    assert some_of(["a"]) == "a"
    assert some_of(list("abcd")) == "a, b, c, d"
    assert some_of(list("abcde")) == "a, b, c and 2 more"
