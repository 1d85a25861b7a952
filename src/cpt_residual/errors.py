"""The error classes shown to users.

Form of a message: what, where, which values; then the consequence; then what to do. All problems
of one kind are collected before raising, so that one run shows them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class CptResidualError(Exception):
    """Base of all errors that are the user's to fix; printed without a traceback.

    `what` is one sentence, `problems` one line each (place and values), `remedy` says what
    follows from it and what to do.
    """

    exit_code = 2

    def __init__(self, what: str, *, problems: Iterable[str] = (), remedy: str = "") -> None:
        self.what = what
        self.problems: tuple[str, ...] = tuple(problems)
        self.remedy = remedy
        lines = [what, *(f"  {problem}" for problem in self.problems)]
        if remedy:
            lines.append(remedy)
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields, so that a worker process can hand the error to its parent."""
        return (_rebuild, (type(self), self.what, self.problems, self.remedy))


def _rebuild(
    kind: type[CptResidualError], what: str, problems: Sequence[str], remedy: str
) -> CptResidualError:
    return kind(what, problems=problems, remedy=remedy)


class ConfigError(CptResidualError):
    """The configuration is not valid: unknown name, wrong type, or values that contradict."""


class CorpusError(CptResidualError):
    """A corpus cannot be read: missing, empty, not UTF-8, a bad line, or too few tokens."""


class CompatibilityError(CptResidualError):
    """Models, tokenizers or residuals that do not belong together."""


class FinalCheckError(CompatibilityError):
    """A complete output failed its last check: it is kept, and not published."""


class ArtifactError(CptResidualError):
    """An artifact of the store cannot be used."""


class StaleArtifactError(ArtifactError):
    """An artifact was built from inputs whose content has changed since."""


class CorruptArtifactError(ArtifactError):
    """An artifact's files are not the files its manifest recorded."""


class BusyError(ArtifactError):
    """Another process builds the artifact right now."""


class DiskSpaceError(CptResidualError):
    """The disk has less room than the planned work needs."""


class LaunchError(CptResidualError):
    """Processes, devices or the environment do not allow what was asked for."""


class WorkerError(CptResidualError):
    """A stage failed or died while it was being built."""

    exit_code = 1


class EvaluationError(CptResidualError):
    """An evaluation cannot be run or its results cannot be trusted."""


_SAME = {
    "gpu": "cuda",
    "none": "off",
    "false": "off",
    "no": "off",
    "float32": "fp32",
    "bfloat16": "bf16",
}
"""What others call a thing, in lower case."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or a list of all when none is near (or when
    `name` itself is one: then it is not the name that is wrong)."""
    names = sorted(set(known))
    same = _SAME.get(name.lower())
    near = [same] if same in names else get_close_matches(name, names, n=1, cutoff=0.5)
    if near and name not in names:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
