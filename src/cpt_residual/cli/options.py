"""Command-line options shared by several commands, and their parsing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from pydantic import ValidationError

from cpt_residual.config.merging import MergeRecipe, Storage, VocabPolicy
from cpt_residual.core.measure import usable_cores
from cpt_residual.errors import ConfigError, did_you_mean
from cpt_residual.methods.registry import method_classes

if TYPE_CHECKING:
    from cpt_residual.cli.terminal import Terminal
    from cpt_residual.launch.hub import HubModel
    from cpt_residual.methods.method import Method

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
Policy = Annotated[
    VocabPolicy,
    typer.Option(
        "--vocab-policy", help="equal refuses other tokens; common_tokens aligns rows by token"
    ),
]
StorageName = Literal["fp32", "bf16"]

_FEWEST_THREADS, _MOST_THREADS = 6, 32


def num_threads(threads: int | None) -> int:
    """As asked for, else two per core that this process may use (one computes, one waits for the
    disk): at least 6, because a disk answers so many requests sooner than one after the other; at
    most 32, because each has some 32 MB of memory."""
    return threads or min(max(_FEWEST_THREADS, 2 * usable_cores()), _MOST_THREADS)


def pinned_reference(reference: str, role: str, terminal: Terminal) -> Path | HubModel:
    """A reference whose commit is fixed; says which one when the user left it open."""
    from cpt_residual.weights.io.model_ref import pinned

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


def with_recipe(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` as typer sees it: its parameter `recipe` becomes an option for every field of
    MergeRecipe and for every field of every method, with their descriptions as help."""
    options = list(_recipe_options())

    def run(*, scale: list[str] | None = None, **given: object) -> None:
        chosen = {each.name: given.pop(each.name) for each in options if each.name != "scale"}
        verb(**given, recipe=recipe_of(chosen, scale or ()))

    signature = inspect.signature(verb, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        parameters += options if each.name == "recipe" else [each]
    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    setattr(run, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    return run


def _recipe_options() -> Iterator[inspect.Parameter]:
    for name, field in MergeRecipe.model_fields.items():
        if name == "method":
            kinds = method_classes()
            metavar = f"[{'|'.join(kinds)}]"
            yield _option(name, str, "add", text=field.description, metavar=metavar)
            yield from _method_options(kinds)
        elif name == "scales":
            yield _option("scale", list[str] | None, None, text=field.description)
        else:
            yield _option(name, field.annotation, field.default, text=field.description)


def _method_options(kinds: Mapping[str, type[Method]]) -> Iterator[inspect.Parameter]:
    """An option per field of any method; methods may share one."""
    for name, owners in _owners_of_options(kinds).items():
        fields = [kinds[kind].model_fields[name] for kind in owners]
        texts = [
            f"{kind}: {field.description}"
            + ("" if field.default is None else f" ({field.default})")
            for kind, field in zip(owners, fields, strict=True)
        ]
        yield _option(name, _without_none(fields[0].annotation), None, text="; ".join(texts))


def _owners_of_options(kinds: Mapping[str, type[Method]]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for kind, method in kinds.items():
        for name in method.model_fields:
            if name != "kind":
                owners.setdefault(name, []).append(kind)
    return owners


def _without_none(annotation: object) -> object:
    members = get_args(annotation)
    rest = [each for each in members if each is not NoneType]
    return rest[0] if NoneType in members and len(rest) == 1 else annotation


def _option(
    name: str, annotation: object, default: object, *, text: str | None, metavar: str | None = None
) -> inspect.Parameter:
    option = typer.Option(default, _flag(name), help=text, metavar=metavar)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=option, annotation=annotation)


def recipe_of(options: Mapping[str, object], scales: Iterable[str] = ()) -> MergeRecipe:
    """The recipe that the options describe. Raises ConfigError for an unknown method, an option of
    another one, a value out of range, or a scale that is not PATTERN=FACTOR."""
    kinds, kind = method_classes(), str(options["method"])
    if kind not in kinds:
        raise ConfigError(
            f"--method {kind}: there is no such method.{did_you_mean(kind, kinds)}",
            problems=[f"{name}: {each.words}" for name, each in kinds.items()],
            remedy="Nothing was done. Choose one of these.",
        )
    owners = _owners_of_options(kinds)
    given = {name: options[name] for name in owners if options[name] is not None}
    if foreign := [name for name in sorted(given) if kind not in owners[name]]:
        raise ConfigError(
            f"--method {kind} does not know {len(foreign)} of the given options",
            problems=[f"{_flag(x)} belongs to --method {', '.join(owners[x])}" for x in foreign],
            remedy="Nothing was done. Leave them out, or choose their method.",
        )
    fields = {name: options[name] for name in MergeRecipe.model_fields.keys() & options.keys()}
    fields |= {"method": {"kind": kind, **given}, "scales": _scales(scales)}
    return _validated(MergeRecipe, fields)


def _scales(texts: Iterable[str]) -> dict[str, float]:
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
    names = [str(part) for part in place if str(part) not in method_classes()]
    message = str(error["msg"]).removeprefix("Value error, ")
    if names[:1] == ["scales"]:
        return f"--scale {names[-1]}: {message}"
    return f"{_flag(names[-1])}: {message}" if names else message


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
