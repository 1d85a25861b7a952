"""Command-line options shared by several commands, and their parsing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from cpt_residual.config.merging import MergeRecipe, Storage, VocabPolicy
from cpt_residual.core.measure import usable_cores
from cpt_residual.errors import ConfigError

if TYPE_CHECKING:
    from cpt_residual.cli.terminal import Terminal
    from cpt_residual.launch.hub import HubModel

MODEL = "a directory, or ORG/NAME@COMMIT on the hub"

Base = Annotated[str, typer.Option("--base", help=f"the released base: {MODEL}")]
Instruct = Annotated[str, typer.Option("--instruct", help=f"the released instruct: {MODEL}")]
MaybeBase = Annotated[str | None, typer.Option("--base", help=f"the released base: {MODEL}")]
MaybeInstruct = Annotated[
    str | None, typer.Option("--instruct", help=f"the released instruct: {MODEL}")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check, estimate, say what would be done; write nothing")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="default: two per usable core, 6 to 32"),
]
Rank = Annotated[int | None, typer.Option(min=1, help="low rank: how many factors")]
Explained = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="low rank: share of the squared norm to explain"),
]
MethodName = Literal["add", "ties", "dare", "low_rank"]
EmbeddingRows = Literal["all", "special_tokens", "none"]
Policy = Annotated[
    VocabPolicy,
    typer.Option(
        "--vocab-policy", help="equal refuses other tokens; common_tokens aligns rows by token"
    ),
]
NewTokenRows = Literal["instruct_row", "base_mean"]
AutoAlpha = Literal["off", "projection"]
StorageName = Literal["fp32", "bf16"]

_PARAMETERS_OF: dict[MethodName, tuple[str, ...]] = {
    "add": (),
    "ties": ("density",),
    "dare": ("drop_rate", "seed"),
    "low_rank": ("rank", "explained_variance"),
}


_FEWEST_THREADS, _MOST_THREADS = 6, 32


@dataclass(frozen=True)
class MethodOptions:
    """The options of all methods; None: not given."""

    density: float | None
    drop_rate: float | None
    seed: int | None
    rank: int | None
    explained_variance: float | None


def num_threads(threads: int | None) -> int:
    """As asked for, else two per core that this process may use (one computes, one waits for the
    disk): at least 6, because a disk answers so many requests sooner than one after the other; at
    most 32, because each has some 32 MB of memory."""
    return threads or min(max(_FEWEST_THREADS, 2 * usable_cores()), _MOST_THREADS)


def pinned_reference(reference: str, role: str, terminal: Terminal) -> Path | HubModel:
    """A reference whose commit is fixed; says which one when the user left it open."""
    from cpt_residual.weights.opening import pinned

    found = pinned(reference, role=role)
    if not isinstance(found, Path) and str(found) != reference:
        terminal.note(f"{role}: {found}")
    return found


def storage_of(dtype: StorageName, rank: int | None, explained_variance: float | None) -> Storage:
    """Raises ConfigError for options that contradict each other."""
    if rank is None and explained_variance is None:
        return Storage(dtype=dtype)
    fields = {"rank": rank, "explained_variance": explained_variance}
    return _validated(Storage, {"dtype": dtype, "low_rank": {"kind": "low_rank", **fields}})


def recipe_of(
    method: MethodName, options: MethodOptions, scales: Sequence[str], **choices: object
) -> MergeRecipe:
    """The recipe that the options describe. Raises ConfigError for an option of another method, a
    value out of range, or a scale that is not PATTERN=FACTOR."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    foreign = sorted(given.keys() - set(_PARAMETERS_OF[method]))
    if foreign:
        owners = {name: kind for kind, names in _PARAMETERS_OF.items() for name in names}
        raise ConfigError(
            f"--method {method} does not know {len(foreign)} of the given options",
            problems=[f"{_flag(name)} belongs to --method {owners[name]}" for name in foreign],
            remedy="Nothing was done. Leave them out, or choose their method.",
        )
    fields = {"method": {"kind": method, **given}, "scales": _scales(scales), **choices}
    return _validated(MergeRecipe, fields)


def _scales(texts: Sequence[str]) -> dict[str, float]:
    scales: dict[str, float] = {}
    problems: list[str] = []
    for text in texts:
        pattern, equals, factor = text.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value, equals = 0.0, ""
        if not equals or not pattern:
            problems.append(f"--scale {text}: not PATTERN=FACTOR")
        elif pattern in scales:
            problems.append(f"--scale {text}: {pattern} is given more than once")
        scales[pattern] = value
    if problems:
        raise ConfigError(
            f"{len(problems)} scale(s) cannot be used",
            problems=problems,
            remedy="Nothing was done. Write e.g. --scale attention=0.5 --scale layers.0-3=0.",
        )
    return scales


def _validated(kind: type[Any], fields: dict[str, object]) -> Any:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(
            "The options cannot be used",
            problems=[_told(e["loc"], e) for e in error.errors()],
            remedy="Nothing was done. `--help` says what each option takes.",
        ) from error


def _told(place: tuple[str | int, ...], error: Any) -> str:
    names = [str(part) for part in place if str(part) not in _PARAMETERS_OF]
    message = str(error["msg"]).removeprefix("Value error, ")
    if names[:1] == ["scales"]:
        return f"--scale {names[-1]}: {message}"
    return f"{_flag(names[-1])}: {message}" if names else message


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
