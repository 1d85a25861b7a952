"""What the user sees while a graph is built: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.style import Style
from rich.text import Text

from cpt_residual.launch.visible import visible, visible_lines

_PLAIN_INTERVAL_SECONDS = 10.0
_SHOWN_NAMES = 3
_LEAST_WIDTH = 20


class UserConsole(Console):
    """A console that prints texts as they are: no markup in brackets, no emoji between colons, and
    control characters visible."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print_text(self, text: str, *, style: str = "") -> None:
        """Lines that are never cut or wrapped."""
        self.print(Text(visible_lines(text), style), soft_wrap=True)

    def render_str(  # noqa: PLR0913 - as rich calls it
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        del emoji, markup, highlight, highlighter
        return Text(visible_lines(text), style, justify=justify, overflow=overflow)

    def on_broken_pipe(self) -> None:
        """Left to the door of the command."""
        raise BrokenPipeError


def duration(seconds: float) -> str:
    """`41 s`, `4 min 10 s`, `3 h 20 min` or `2 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def paragraph(console: Console, text: str, *, style: str = "") -> None:
    """Print prose: broken between words at the width of a terminal, in one line elsewhere. A word
    that is too long for a line, such as a path, stays whole."""
    width = max(console.width, _LEAST_WIDTH) if console.is_terminal else len(text) + 1
    bound = text.replace(" %", "\N{NO-BREAK SPACE}%")  # a number stays with its unit
    lines = textwrap.wrap(bound, width, break_long_words=False, break_on_hyphens=False)
    shown = "\n".join(map(visible, lines)).replace("\N{NO-BREAK SPACE}", " ")
    console.print(Text(shown, style), soft_wrap=True, highlight=False)


def some_of(names: Sequence[str]) -> str:
    """`a, b, c and 28 more`."""
    if len(names) <= _SHOWN_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN_NAMES])} and {len(names) - _SHOWN_NAMES} more"


@dataclass
class _Running:
    started: float
    first_done: int | None = None
    first_time: float = 0.0
    last_line: float = 0.0
    bar: TaskID | None = None


class BuildConsole:
    """Progress of the stages of one run, with rate and time left.

    Use as a context manager. On a terminal each running stage has a bar; without one a plain line
    appears when a stage starts and ends and every ten seconds in between.
    """

    def __init__(self, console: Console, *, total_stages: int) -> None:
        self.console = console
        self._running: dict[str, _Running] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("all stages", total=total_stages, note=f"0/{total_stages}")
        self._total, self._ended = total_stages, 0
        self._blocked: list[str] = []

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
        if self._blocked:
            count = len(self._blocked)
            stages = f"{count} stage{'s' if count > 1 else ''}"
            why = f"not built because of what failed: {stages} ({some_of(self._blocked)})"
            paragraph(self.console, why)

    def line(self, verb: str, node: str, note: str = "", *, style: str = "") -> None:
        """One lasting line, e.g. `skip   pack:cpt   ready, built 2026-11-21 (1f0c2a9b)`."""
        text = f"{verb:<6} {node:<36} {note}".rstrip()
        self.console.print(Text(visible(text), style), soft_wrap=True, highlight=False)

    def skipped(self, node: str, why: str) -> None:
        """A stage that need not run."""
        self._count()
        self.line("skip", node, why, style="dim")

    def waiting(self, node: str, why: str) -> None:
        """A stage that another process builds; it starts when that process has ended."""
        self._stop(node)
        self.line("waiting", node, why, style="yellow")

    def reused(self, node: str, note: str) -> None:
        """A stage that began, and was found ready."""
        self._close(node)
        self.line("skip", node, note, style="dim")

    def started(self, node: str) -> None:
        """A stage begins."""
        running = _Running(started=time.monotonic(), last_line=time.monotonic())
        if self.console.is_terminal:
            running.bar = self._bars.add_task(visible(node), total=None, note="")
        else:
            self.line("start", node)
        self._running[node] = running

    def progressed(self, node: str, done: int, total: int, unit: str) -> None:
        """A stage reports `done` of `total` units."""
        running, now = self._running[node], time.monotonic()
        if running.first_done is None or done < running.first_done:
            running.first_done, running.first_time = done, now
        note = _note(running, now, done, total, unit)
        if running.bar is not None:
            self._bars.update(running.bar, completed=done, total=total, note=note)
        elif now - running.last_line >= _PLAIN_INTERVAL_SECONDS:
            running.last_line = now
            self.line("  ...", node, note)

    def finished(self, node: str, note: str) -> None:
        """A stage is published."""
        self._close(node)
        self.line("done", node, note, style="green")

    def failed(self, node: str, note: str) -> None:
        """A stage failed."""
        self._close(node)
        self.line("FAILED", node, note, style="bold red")

    def blocked(self, node: str) -> None:
        """A stage cannot run because one it needs has failed; told once at the end."""
        self._close(node)
        self._blocked.append(node)

    def _close(self, node: str) -> None:
        self._stop(node)
        self._count()

    def _stop(self, node: str) -> None:
        running = self._running.pop(node, None)
        if running is not None and running.bar is not None:
            self._bars.remove_task(running.bar)

    def _count(self) -> None:
        self._ended += 1
        note = f"{self._ended}/{self._total}"
        self._bars.update(self._all, completed=self._ended, note=note)


def _note(running: _Running, now: float, done: int, total: int, unit: str) -> str:
    """`120,000/300,000 tokens  10,900 tokens/s  17 s left`; the rate counts from the first report,
    so that a resumed stage does not look faster than it is."""
    text = f"{done:,}/{total:,} {unit}"
    elapsed = now - running.first_time
    gained = done - (running.first_done or 0)
    if elapsed < 0.5 or gained <= 0:
        return text
    rate = gained / elapsed
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    return f"{text}  {shown} {unit}/s  {duration((total - done) / rate)} left"


def scientific(value: float) -> str:
    """`3.10e15`, for FLOPs; empty for 0."""
    return f"{value:.2e}".replace("e+", "e") if value else ""
