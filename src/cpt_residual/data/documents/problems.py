"""Collect the problems of a corpus so that one error reports them all."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpt_residual.errors import CorpusError
from cpt_residual.launch.visible import visible

MAX_PROBLEMS = 20
"""Reading stops once so many different problems are known."""

MAX_BAD_LINES = 1000
"""Reading stops once so many lines are bad, also when it is the same with all of them."""

_SHOWN_LINES = 5
_MORE = "(further problems are not listed)"


class BadDocumentError(ValueError):
    """One document that cannot be used; its text is one line of a `CorpusError`."""


@dataclass
class _Group:
    """Lines of one file with one problem; only the first numbers are kept."""

    unit: str
    count: int = 0
    first: list[int] = field(default_factory=list[int])

    def text(self, file: str, what: str) -> str:
        if not self.first:
            return what
        if self.count == 1:
            between = ":" if self.unit == "line" else f" {self.unit} "
            return f"{file}{between}{self.first[0]}: {what}"
        numbers = ", ".join(map(str, self.first)) + (
            ", ..." if self.count > len(self.first) else ""
        )
        return f"{file}: {self.count:,} {self.unit}s ({numbers}): {what}"


class Problems:
    """Up to `MAX_PROBLEMS` lines for one `CorpusError`."""

    def __init__(self, what: str, remedy: str) -> None:
        self._what = what
        self._remedy = remedy
        self._groups: dict[tuple[str, str], _Group] = {}
        self._num_bad_lines = 0

    def add(self, line: str) -> None:
        """Remember one problem; raises when the list is full."""
        self._groups[f"{len(self._groups)}", line] = _Group("line")
        if len(self._groups) >= MAX_PROBLEMS:
            self._raise([_MORE])

    def add_line(self, file: str, number: int, what: str, *, unit: str = "line") -> None:
        """Remember what is wrong with line (or other `unit`) `number` of `file`; those of one file
        that have the same problem become one entry with their count. Raises when there are too
        many."""
        group = self._groups.setdefault((file, what), _Group(unit))
        group.count += 1
        if len(group.first) < _SHOWN_LINES:
            group.first.append(number)
        self._num_bad_lines += 1
        if len(self._groups) >= MAX_PROBLEMS or self._num_bad_lines >= MAX_BAD_LINES:
            self._raise([_MORE])

    def __bool__(self) -> bool:
        return bool(self._groups)

    def raise_if_any(self) -> None:
        """Raise one `CorpusError` with everything found so far, or return."""
        self._raise([])

    def _raise(self, last: list[str]) -> None:
        if self._groups:
            texts = (group.text(file, what) for (file, what), group in self._groups.items())
            lines = [visible(text) for text in texts]
            raise CorpusError(self._what, problems=[*lines, *last], remedy=self._remedy)
