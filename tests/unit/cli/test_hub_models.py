"""Models of the hub by the command line: pinned, named, pushed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx2
import huggingface_hub
import pytest

from cpt_residual.launch import hub
from support.cli_family import APPLY, Run

COMMIT = "0123456789" * 4


@pytest.fixture
def hub_cache(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`org/base` in the hub's cache: a snapshot of links to blobs elsewhere."""
    snapshot = family / "cache/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in (family / "base").iterdir():
        blob = family / "cache" / f"blob-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)

    def snapshot_download(repo_id: str, *, revision: str, **_: object) -> str:
        assert (repo_id, revision) == ("org/base", COMMIT)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return snapshot


def test_a_model_of_the_hub_is_pinned_and_named(
    family: Path, run: Run, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def model_info(self, hub_id: str) -> object:
            assert hub_id == "org/base"
            return type("Info", (), {"sha": COMMIT})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    open_commit = ("--base", "org/base", "--instruct", "instruct")
    done = run("compute", *open_commit, "--out", "r")
    assert done.status == 0, done.stderr
    assert f"base: org/base@{COMMIT}" in done.stderr
    origin = json.loads((family / "r/origin.json").read_text())
    assert (origin["base"]["name"], origin["base"]["revision"]) == ("org/base", COMMIT)
    fixed = ("--base", f"org/base@{COMMIT}", "--instruct", "instruct")
    merged = run("apply", "--target", "cpt", *fixed, "--no-verify", "--out", "o")
    assert merged.status == 0, merged.stderr
    assert f"org/base@{COMMIT}" not in merged.stderr, "only what was left open is told"
    card = (family / "o/README.md").read_text()
    assert '- "org/base"' in card
    assert f"--base org/base@{COMMIT}" in card


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("org/base@main", "'main' in org/base@main is not a commit"),
        ("org/base@0123", "is not a commit"),
        ("nowhere", "nowhere is not a directory"),
        ("org/nowhere", "names no commit, and the hub cannot be asked"),
    ],
)
def test_references_that_cannot_be_used(
    family: Path, run: Run, reference: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = run("compute", "--base", reference, "--instruct", "instruct", "--out", "r")
    assert done.status == 2
    assert said in done.stderr
    assert not (family / "r").exists()


def test_a_hub_that_cannot_be_reached(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def model_info(self, hub_id: str) -> object:
            raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    done = run("compute", "--base", "org/name", "--instruct", "instruct", "--out", "r")
    assert done.status == 2
    assert "the hub cannot be asked for the current one" in done.stderr
    assert "Name or service not known" in done.stderr
    done = run("compute", "--base", "instruct/typo", "--instruct", "instruct", "--out", "r")
    assert done.status == 2
    assert "instruct/typo is not a directory" in done.stderr


def test_push_uploads_after_everything_is_shown(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, object]] = []

    class Api:
        def create_repo(self, hub_id: str, *, private: bool, exist_ok: bool) -> None:
            calls.append(("create", (hub_id, private, exist_ok)))

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: object) -> str:
            names = {path.name for path in Path(folder_path).iterdir()}
            assert {"README.md", "merge.json", "config.json"} <= names
            calls.append(("upload", repo_id))
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    done = run(*APPLY, "--out", "o", "--push", "org/name", "--json")
    assert done.status == 0, done.stderr
    assert done.document["pushed"] == "https://hub/org/name/commit/1"
    assert calls == [("create", ("org/name", True, True)), ("upload", "org/name")]


def test_the_current_directory_can_be_pushed(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing puts another directory into its place: `.` means the old one."""
    pushed: list[str] = []

    class Api:
        def create_repo(self, *_: object, **__: object) -> None: ...

        def upload_folder(self, *, folder_path: str, **_: object) -> str:
            assert (Path(folder_path) / "merge.json").is_file()
            pushed.append(folder_path)
            return "https://hub"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    (family / "o").mkdir()
    monkeypatch.chdir(family / "o")
    arguments = ("apply", "--target", "../cpt", "--base", "../base", "--instruct", "../instruct")
    done = run(*arguments, "--no-verify", "--out", ".", "--push", "org/name")
    assert done.status == 0, done.stderr
    assert "apply o" in done.stderr
    assert pushed == [str(family / "o")]


def test_a_push_that_fails_keeps_the_model(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def create_repo(self, *_: object, **__: object) -> None:
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    done = run(*APPLY, "--out", "o", "--push", "org/name")
    assert done.status == 2
    assert "is complete, but could not be uploaded" in done.stderr
    assert "hf upload org/name o ." in done.stderr
    assert (family / "o/merge.json").is_file()


def test_only_forms_of_hub_ids_go_to_the_hub() -> None:
    assert hub.hub_model(f"org/name@{COMMIT}", role="base") == hub.HubModel("org/name", COMMIT)
    for path in ("/a/b", "./a/b", "../a", "a/b/c", "a", "~/a"):
        assert hub.hub_model(path, role="base") is None
