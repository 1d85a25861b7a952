"""Collecting what is wrong with a corpus, so that one run shows all of it."""

from __future__ import annotations

from cpt_residual.errors import CorpusError

__all__ = ["MAX_PROBLEMS", "BadDocumentError", "Problems"]

MAX_PROBLEMS = 20
"""Reading stops once so many problems are known."""


class BadDocumentError(ValueError):
    """One document that cannot be used; its text is one line of a `CorpusError`."""


class Problems:
    """Up to `MAX_PROBLEMS` lines for one `CorpusError`."""

    def __init__(self, what: str, remedy: str) -> None:
        self._what = what
        self._remedy = remedy
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Remember one problem; raises when the list is full."""
        self._lines.append(line)
        if len(self._lines) >= MAX_PROBLEMS:
            self._lines.append("(further problems are not listed)")
            self.raise_if_any()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self) -> None:
        """Raise one `CorpusError` with everything found so far, or return."""
        if self._lines:
            raise CorpusError(self._what, problems=self._lines, remedy=self._remedy)
