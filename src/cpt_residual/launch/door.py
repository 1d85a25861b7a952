"""Entry point wrapper of every command: stream encoding, one-line errors, exit status."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

from cpt_residual.errors import ArtifactError, ConfigError, CptResidualError
from cpt_residual.launch.environment import set_user_defaults
from cpt_residual.launch.stopping import say_stopped
from cpt_residual.launch.visible import visible, visible_lines

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

PIPE_CLOSED = 141
"""Exit status when the reader of the output is gone, as of a program that SIGPIPE ends."""

_PLAIN = "cpt_residual.plain"
_ASCII = str.maketrans(
    {
        "\N{BOX DRAWINGS LIGHT UP AND RIGHT}": "`",
        "\N{BOX DRAWINGS LIGHT VERTICAL AND RIGHT}": "+",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
        "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{NO-BREAK SPACE}": " ",
        "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}": "[",
        "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}": "]",
    }
)


def enter(work: Callable[[], int], *, resumes: str) -> int:
    """Run a command; returns its exit status. Nothing that a user can meet gets through: errors
    of ours, of files, of the output itself, Ctrl-C and SIGTERM end in one line on stderr.

    `resumes`: what to do after Ctrl-C or SIGTERM."""
    _prepare()
    set_user_defaults()
    try:
        try:
            status = work()
        except SystemExit as end:  # of argparse and typer: help, usage, a verb's own status
            if end.code and any(map(_reader_is_gone, (1, 2))):
                raise BrokenPipeError from None
            if isinstance(end.code, str):
                say(end.code, stream=sys.stderr)
            status = end.code if isinstance(end.code, int) else 2 * bool(end.code)
        _flush()
    except CptResidualError as error:
        return _ended(error)
    except KeyboardInterrupt as stop:
        status = say_stopped(stop, remedy=resumes)
        _drop_output()
    except OSError as error:
        return _ended_by(error)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        return _ended(_not_utf8(error))
    return status


def say(line: str, *, stream: TextIO | None = None) -> None:
    """Print text that holds names of others; on stdout if nothing is said."""
    print(visible_lines(line), file=stream or sys.stdout)


def say_error(error: CptResidualError) -> None:
    """An error as the user reads it, on stderr: a problem is a line, whatever names are in it."""
    lines = [f"{type(error).__name__}: {error.what}", *(f"  {each}" for each in error.problems)]
    whole = [visible_lines(lines[0]), *map(visible, lines[1:])]
    say("\n".join([*whole, *filter(None, [visible_lines(error.remedy)])]), stream=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Whose complaints show control characters of the arguments as text."""

    def error(self, message: str) -> NoReturn:
        super().error(visible_lines(message))

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Unlike the library's, hears of an output that cannot be written."""
        (file or sys.stderr).write(message)


def _prepare() -> None:
    """Streams that print what their encoding lacks in other words; 0, 1 and 2 are open, so that no
    file that is opened later gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    codecs.register_error(_PLAIN, _in_other_words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)


def _in_other_words(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "registered for output alone"
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]  where it is closed
            stream.flush()


def _ended(error: CptResidualError) -> int:
    try:
        say_error(error)
        _flush()
    except OSError as unwritten:
        return _ended_by(unwritten)
    return error.exit_code


def _ended_by(error: OSError) -> int:
    """Quietly where the reader of the output is gone, else in one line."""
    if isinstance(error, BrokenPipeError) and any(map(_reader_is_gone, (1, 2))):
        _drop_output()
        return PIPE_CLOSED
    if error.filename is None:  # perhaps stdout itself, after the work was done
        place = "the output, or a file"
        remedy = "It could not be written; what was published stays. See to the disk or the output."
    else:
        place = error.filename
        remedy = "No output was made. See to the file and its disk, then run it again."
    named = ArtifactError(f"{place}: {error.strerror or error}", remedy=remedy)
    _drop_output()
    with contextlib.suppress(OSError):  # of stderr itself: nobody can be told
        say_error(named)
    return named.exit_code


def _reader_is_gone(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_output() -> None:
    """Send what is left of an output that cannot be written nowhere: the interpreter flushes it
    again at its end, and would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # a stream without a file
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def _not_utf8(error: UnicodeEncodeError) -> ConfigError:
    text = error.object[max(0, error.start - 60) : error.end + 20]
    return ConfigError(
        "a path or name is not UTF-8, and cannot be written into files",
        problems=[f"...{text}..."],
        remedy="Nothing was published. Rename the folder, or work in another one.",
    )
