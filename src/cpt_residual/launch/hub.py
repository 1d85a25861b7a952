"""Models of the Hugging Face hub: pinned by commit, fetched where needed, pushed when asked.

Only safetensors and small text files are ever fetched: no pickles, no code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from cpt_residual.errors import ArtifactError, ConfigError, LaunchError

MODEL_SUFFIXES = (
    *(".safetensors", ".json", ".jinja", ".model", ".txt"),
    *(".tiktoken", ".spm", ".codes", ".bpe"),  # other forms of a vocabulary
)
_PATTERNS = [*(f"*{suffix}" for suffix in MODEL_SUFFIXES), "tokenizer.model.v*"]
_NAMED_TEMPLATES = ["additional_chat_templates/*.jinja"]
_OTHER_COPIES = ["*/*", "consolidated*"]  # other formats of the same weights
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_UPLOADED = [*_PATTERNS, "README.md"]


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at one commit."""

    hub_id: str
    revision: str

    def __str__(self) -> str:
        return f"{self.hub_id}@{self.revision}"


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `ORG/NAME`."""
    return bool(_HUB_ID.match(text))


def hub_model(reference: str, *, role: str) -> HubModel | None:
    """`ORG/NAME@COMMIT`, or `ORG/NAME` at its commit of this moment; None: not of that form.

    Raises ConfigError for a commit that is not 40 hex digits (branches and tags move),
    ArtifactError when the hub has to be asked and does not answer.
    """
    hub_id, at, revision = reference.partition("@")
    if not is_hub_id(hub_id):
        return None
    if at and not _COMMIT.match(revision):
        raise ConfigError(
            f"{role}: {revision!r} in {reference} is not a commit",
            remedy="Branches and tags move, so the result would not be reproducible. Give the 40 "
            f"hex digits of a commit, or {hub_id} alone for the current one.",
        )
    return HubModel(hub_id, revision if at else _current_commit(hub_id, role))


def snapshot(model: HubModel, *, role: str) -> Path:
    """The commit's files in the hub cache, downloaded where needed; never pickles or code."""
    import huggingface_hub

    try:
        hub = cast("Any", huggingface_hub)
        hub.snapshot_download(
            model.hub_id, revision=model.revision, allow_patterns=_NAMED_TEMPLATES
        )
        folder = hub.snapshot_download(
            model.hub_id,
            revision=model.revision,
            allow_patterns=_PATTERNS,
            ignore_patterns=_OTHER_COPIES,
        )
    except network_errors() as error:
        _raise_hub(role, model, error)
    return Path(folder)


def require_hub_id(text: str) -> None:
    """Raises ConfigError unless `text` has the form `ORG/NAME`."""
    if not is_hub_id(text):
        raise ConfigError(
            f"{text} is not a name on the hub",
            remedy="Nothing was done. Give ORG/NAME, e.g. my-org/llama3-8b-cpt-instruct.",
        )


def require_token(hub_id: str) -> None:
    """Raises LaunchError unless this user is logged in to the hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise LaunchError(
            f"{hub_id}: there is no token for the hub",
            remedy="Nothing was done. Log in with `hf auth login` (a token that may write), or "
            "leave --push out.",
        )


def upload(folder: Path, hub_id: str) -> str:
    """Uploads a model directory and returns the commit's address; a new repository is private.

    Only weights, configs, tokenizer and README.md travel.
    """
    from huggingface_hub import HfApi

    api = cast("Any", HfApi())
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        info = api.upload_folder(
            repo_id=hub_id,
            folder_path=str(folder),
            allow_patterns=_UPLOADED,
            commit_message=f"Upload {folder.name}",
        )
    except (*network_errors(), ValueError) as error:
        raise LaunchError(
            f"{folder} is complete, but could not be uploaded to {hub_id}",
            problems=[_first_line(error)],
            remedy=f"Try again: hf upload {hub_id} {folder} .",
        ) from error
    return str(info)


def network_errors() -> tuple[type[Exception], ...]:
    """What the hub's library raises when the hub refuses, or cannot be reached."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError, httpx2.HTTPError, OSError)


def connection_errors() -> tuple[type[Exception], ...]:
    """Those of `network_errors` that mean: the hub was not reached."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError

    return (ConnectionError, httpx2.TransportError, LocalEntryNotFoundError)


def _current_commit(hub_id: str, role: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        commit = cast("object", HfApi().model_info(hub_id).sha)
    except RepositoryNotFoundError as error:
        raise ArtifactError(
            f"{role}: {hub_id} is neither a directory here nor a model on the hub that you may "
            "read",
            problems=[_first_line(error)],
            remedy="Correct it, or `hf auth login` with an account that may read it.",
        ) from error
    except network_errors() as error:
        raise ArtifactError(
            f"{role}: {hub_id} is not a directory here, it names no commit, and the hub cannot be "
            "asked for the current one",
            problems=[_first_line(error)],
            remedy=f"Correct the path, or give the commit: {hub_id}@ and its 40 hex digits.",
        ) from error
    if not isinstance(commit, str) or not _COMMIT.match(commit):
        raise ArtifactError(
            f"{role}: the hub names no commit for {hub_id}",
            remedy=f"Give it yourself: {hub_id}@ and its 40 hex digits.",
        )
    return commit


def _raise_hub(role: str, model: HubModel, error: Exception) -> NoReturn:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{model.hub_id} at {model.revision}"
    command = f"hf download {model.hub_id} --revision {model.revision}"
    if isinstance(error, GatedRepoError):
        what, remedy = (
            f"{role}: access to {where} is gated",
            f"Accept its licence on https://huggingface.co/{model.hub_id}, then `hf auth login`.",
        )
    elif isinstance(error, RevisionNotFoundError):
        what, remedy = f"{role}: there is no commit {where}", "Correct its `revision`."
    elif isinstance(error, RepositoryNotFoundError):
        what, remedy = (
            f"{role}: there is no model {model.hub_id} on the hub, or it is private",
            "Correct its `source`, or `hf auth login` with an account that may read it.",
        )
    elif isinstance(error, LocalEntryNotFoundError):
        what, remedy = (
            f"{role}: {where} is not in the hub cache, and the hub cannot be reached",
            f"On a machine with network and the same cache, run: {command}",
        )
    else:
        what, remedy = f"{role}: {where} cannot be fetched", f"Try again, or run: {command}"
    raise ArtifactError(what, problems=[_first_line(error)], remedy=remedy) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
