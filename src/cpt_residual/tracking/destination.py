"""Where W&B runs go: the configuration and W&B's own environment variables, brought together.

A variable is followed or refused before anything is run, never passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from cpt_residual.config.schema import Tracking
from cpt_residual.config.wandb_names import MAX_TAG_CHARACTERS, problem_of_name
from cpt_residual.errors import LaunchError
from cpt_residual.tracking.boundary import brief, without_user

Mode = Literal["online", "offline"]

_DEFAULT_PROJECT = "cpt_residual"
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
_ON = frozenset({"1", "true", "yes", "on", "y", "t"})
_NOT_ON = frozenset({"", "0", "false", "no", "off", "n", "f"})
_OURS = (
    "WANDB_RUN_ID",
    "WANDB_RUN_GROUP",
    "WANDB_RUN_NAME",
    "WANDB_NAME",
    "WANDB_JOB_TYPE",
    "WANDB_RUN_JOB_TYPE",
    "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM",
    "WANDB_SWEEP_ID",
)
"""What each stage's run has of its own: one value for all of them would make them one run."""

_PUBLIC = frozenset(
    {
        "WANDB_MODE",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "WANDB_DIR",
        "WANDB_TAGS",
        "WANDB_INIT_TIMEOUT",
        "WANDB_FINISH_TIMEOUT",
        "WANDB_HTTP_TIMEOUT",
    }
)
"""The variables whose value is shown; any other may hold a secret (proxies, headers, keys)."""


@dataclass(frozen=True)
class Destination:
    """How and where the runs of an experiment are logged. `folder`: where W&B keeps its files,
    None for the folder of the run."""

    mode: Mode
    project: str
    entity: str | None
    folder: Path | None = None
    init_seconds: float = _INIT_SECONDS
    finish_seconds: float = _FINISH_SECONDS

    def describe(self) -> str:
        owner = f" of {self.entity}" if self.entity else ""
        return f"W&B: {self.mode}, project {self.project}{owner}"


def why_off(tracking: Tracking, variables: Mapping[str, str]) -> str | None:
    """Why nothing goes to W&B, or None when something does. Raises nothing: a value that is no
    mode is `destination_of`'s to refuse."""
    mode = variables.get("WANDB_MODE")
    if tracking.wandb == "off":
        asked = f", although WANDB_MODE={mode} is set" if mode in _MODES else ""
        return f"tracking.wandb=off{asked}"
    if mode == "disabled":
        return "WANDB_MODE=disabled"
    disabled = variables.get("WANDB_DISABLED", "")
    return f"WANDB_DISABLED={disabled}" if disabled.lower() in _ON else None


def destination_of(tracking: Tracking, variables: Mapping[str, str]) -> Destination | None:
    """Where runs go, None for nowhere. Raises LaunchError with all variables that are wrong or
    contradict the configuration. Does not import wandb."""
    if why_off(tracking, variables) is not None:
        return None
    problems = [
        *_problems_of_mode(tracking, variables),
        *_problems_of_name("project", tracking.project, variables),
        *_problems_of_name("entity", tracking.entity, variables),
        *_problems_of_run(variables),
        *_problems_of_folder(variables),
    ]
    problems += [p for name in ("INIT", "FINISH") for p in _problems_of_seconds(name, variables)]
    if problems:
        raise _refused(problems)
    mode = _MODES.get(variables.get("WANDB_MODE", tracking.wandb))
    folder = variables.get("WANDB_DIR")
    return Destination(
        mode="online" if mode == "online" else "offline",
        project=tracking.project or variables.get("WANDB_PROJECT") or _DEFAULT_PROJECT,
        entity=tracking.entity or variables.get("WANDB_ENTITY"),
        folder=Path(folder).absolute() if folder else None,
        init_seconds=float(variables.get("WANDB_INIT_TIMEOUT", _INIT_SECONDS)),
        finish_seconds=float(variables.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
    )


def require_wandb(destination: Destination, variables: Mapping[str, str]) -> None:
    """Raises LaunchError when W&B cannot work as asked: it takes a variable for wrong, or has no
    API key for a server. Sends nothing."""
    try:
        from wandb.sdk.wandb_settings import Settings
    except Exception as error:
        raise LaunchError(
            f"the library wandb cannot be imported: {brief(error)}",
            remedy="Nothing was run. Install it again, or use tracking.wandb=off.",
        ) from error
    problems = [
        _shown(name, value, problem)
        for name, value in sorted(variables.items())
        if (problem := _raised(lambda n=name, v=value: Settings().update_from_env_vars({n: v})))
    ]
    if not problems and destination.mode == "online":
        problems = [*_problems_of_server()]
    if problems:
        raise _refused(problems)


def _refused(problems: list[str]) -> LaunchError:
    return LaunchError(
        "W&B cannot be used as the environment says",
        problems=problems,
        remedy="Nothing was run. Correct or unset these variables, or use tracking.wandb=off.",
    )


def _problems_of_mode(tracking: Tracking, variables: Mapping[str, str]) -> Iterator[str]:
    mode = variables.get("WANDB_MODE")
    if mode is not None and mode not in _MODES:
        yield f"WANDB_MODE={mode}: not one of online, offline, disabled"
    elif mode is not None and _MODES[mode] == "online" and tracking.wandb == "offline":
        yield f"WANDB_MODE={mode}, but tracking.wandb=offline"
    disabled = variables.get("WANDB_DISABLED", "")
    if disabled.lower() not in _NOT_ON:
        yield f"WANDB_DISABLED={disabled}: neither true nor false"


def _problems_of_name(
    field: str, stated: str | None, variables: Mapping[str, str]
) -> Iterator[str]:
    variable = f"WANDB_{field.upper()}"
    given = variables.get(variable)
    if given is None:
        return
    problem = problem_of_name(given)
    if problem:
        yield f"{variable}={given}: {problem}"
    elif stated is not None and stated != given:
        yield f"{variable}={given}, but tracking.{field}={stated}"


def _problems_of_run(variables: Mapping[str, str]) -> Iterator[str]:
    for name in _OURS:
        if name in variables:
            yield f"{name}={variables[name]}: every stage is a run with its own"
    resume = variables.get("WANDB_RESUME", "allow")
    if resume != "allow":
        yield f"WANDB_RESUME={resume}: runs are always resumed (allow)"
    for tag in variables["WANDB_TAGS"].split(",") if "WANDB_TAGS" in variables else ():
        if not 0 < len(tag.strip()) <= MAX_TAG_CHARACTERS:
            yield f"WANDB_TAGS: {tag!r}: a tag has 1 to {MAX_TAG_CHARACTERS} characters"


def _problems_of_folder(variables: Mapping[str, str]) -> Iterator[str]:
    name = variables.get("WANDB_DIR")
    if name is None:
        return
    if not name.strip():
        yield f"WANDB_DIR={name!r}: names no folder"
        return
    folder = Path(name).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        yield f"WANDB_DIR={name}: nothing can be written below {nearest}"


def _problems_of_seconds(name: str, variables: Mapping[str, str]) -> Iterator[str]:
    variable = f"WANDB_{name}_TIMEOUT"
    given = variables.get(variable, "1")
    try:
        usable = 0 < float(given) <= 3600
    except ValueError:
        usable = False
    if not usable:
        yield f"{variable}={given}: not a number of seconds between 0 and 3600"


def _problems_of_server() -> Iterator[str]:
    """Of address and key. W&B reads the key from a variable, from ~/.netrc or from its settings."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = ""
    found: list[object] = []

    def ask() -> None:
        nonlocal host
        host = cast("Any", wandb_setup.singleton()).settings.base_url
        found.append(
            cast("Any", wbauth).authenticate_session(
                host=host, source="cpt_residual", prompt=False, update_session=False
            )
        )

    problem = _raised(ask)
    wandb_setup.teardown()  # what it has read of the environment is not for keeps
    if problem:
        yield f"{without_user(host)}: {problem}" if host else problem
    elif found == [None]:
        yield (
            f"no W&B API key was found for {without_user(host)}: looked in WANDB_API_KEY and in "
            "~/.netrc. Run `wandb login`, or use tracking.wandb=offline and upload later with "
            "`wandb sync`"
        )


def _raised(act: Callable[[], object]) -> str | None:
    """What W&B says against it, in one line, or None. It raises errors of several libraries."""
    try:
        act()
    except ValidationError as error:
        return without_user(error.errors()[0]["msg"])
    except Exception as error:  # noqa: BLE001  it becomes an error that names the variable
        return brief(error)
    return None


def _shown(name: str, value: str, problem: str) -> str:
    if name in _PUBLIC:
        return f"{name}={value}: {problem}"
    return f"{name}: {problem.replace(value, '...') if value.strip() else problem}"
