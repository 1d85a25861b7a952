"""Command output: results on stdout, everything else on stderr; --json prints one document."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer
from pydantic import BaseModel
from rich.table import Table

from cpt_residual.core.disk import writing
from cpt_residual.core.files import replacing
from cpt_residual.core.stage import ProgressReport
from cpt_residual.launch.console import BuildConsole, UserConsole, duration
from cpt_residual.launch.stopping import say_stopped, terminable

_TABLE_WIDTH = 120


class Terminal:
    """One verb's conversation with the user."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = UserConsole()
        self._err = UserConsole(stderr=True)

    def note(self, line: str) -> None:
        """Something worth knowing, on stderr."""
        self._err.print_text(line)

    def warn(self, line: str) -> None:
        """Something that may be wrong, on stderr."""
        self._err.print_text(f"warning: {line}", style="yellow")

    def result(self, document: object, rows: Callable[[], Mapping[str, str]]) -> None:
        """The verb's result: `document` as JSON, or `rows` as lines, name and value."""
        if self._as_json:
            self._print_json(document)
            return
        lines = {name: value for name, value in rows().items() if value}
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            self._out.print_text(f"{name:<{width}}  {value}")

    def table(self, document: object, table: Callable[[], Table]) -> None:
        """The verb's result: `document` as JSON, or a table, never narrower than it needs."""
        if self._as_json:
            self._print_json(document)
            return
        self._out.width = max(self._out.width, _TABLE_WIDTH)
        self._out.print(table())

    def _print_json(self, document: object) -> None:
        print(json.dumps(_plain(document), indent=1, sort_keys=True, allow_nan=False))

    @contextmanager
    def progress(self, verb: str, name: str) -> Generator[ProgressReport]:
        """Rate and time left of one piece of work: a bar on a terminal, else plain lines."""
        node, started = f"{verb} {name}", time.monotonic()
        with BuildConsole(self._err, total_stages=1) as console:
            console.started(node)

            def report(done: int, total: int, unit: str) -> None:
                console.progressed(node, done, total, unit)

            yield report
            console.finished(node, duration(time.monotonic() - started))


@contextmanager
def interruptible(what_to_do: str) -> Generator[None]:
    """Ctrl-C ends the process with status 130, SIGTERM with 143, and one line."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt as stop:
        raise typer.Exit(say_stopped(stop, remedy=what_to_do)) from None


def write_text(path: Path, text: str) -> None:
    """The whole file or the one that was there before; its directory is made. Raises ArtifactError
    and DiskSpaceError."""
    with writing(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
