"""What a broken W&B, a torn line or another user's folder must not do to a stage."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from cpt_residual.errors import LaunchError
from cpt_residual.launch.environment import without_wandb_service
from cpt_residual.tracking import wandb_sink
from cpt_residual.tracking.boundary import Boundary
from cpt_residual.tracking.destination import Destination, require_wandb
from cpt_residual.tracking.outcome import Outcome, record, upload_lines
from cpt_residual.tracking.wandb_sink import RunIdentity, WandbSink

IDENTITY = RunIdentity("tiny", 0, "cpt", "cpt:base_cpt", "ab" * 32)
OFFLINE = Destination("offline", "p", None)


@pytest.fixture
def broken_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library `wandb` that raises when it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "lib" / "wandb").mkdir(parents=True)
    (tmp_path / "lib" / "wandb" / "__init__.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))


@pytest.mark.usefixtures("broken_wandb")
def test_a_library_that_cannot_be_imported_fails_no_stage(tmp_path: Path) -> None:
    sink = WandbSink.open(IDENTITY, OFFLINE, config={}, run_dir=tmp_path / "run")
    sink.log({"loss": 1.0}, tokens=1, step=1)
    assert "half installed" in sink.finish().failure


def test_nothing_is_imported_to_end_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it raises
    monkeypatch.setitem(sys.modules, "wandb.sdk.wandb_setup", None)
    Boundary.reset()


@pytest.mark.parametrize(
    ("lines", "failure"),
    [
        ('{"level":"ERROR","msg":"uplo', ""),
        ('{"level":"ERROR","msg":"refused","error":"409"}\n{"level":"ERROR","ms', "refused 409"),
    ],
)
def test_a_torn_line_of_the_log_fails_no_stage(tmp_path: Path, lines: str, failure: str) -> None:
    log = tmp_path / "debug-internal.log"
    log.write_text(lines)
    assert (wandb_sink._upload_problem(log) or "") == failure


def test_an_abandoned_thread_restores_one_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "old")
    inside, leave = threading.Event(), threading.Event()

    def start() -> None:
        with without_wandb_service():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=start)
    thread.start()
    assert inside.wait(10)
    assert "WANDB_SERVICE" not in os.environ
    monkeypatch.setenv("CPT_RESIDUAL_TEST", "set meanwhile")
    leave.set()
    thread.join(10)
    assert os.environ["CPT_RESIDUAL_TEST"] == "set meanwhile"
    assert os.environ["WANDB_SERVICE"] == "old"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_X_EXTRA_HTTP_HEADERS", "{'Authorization': 'Bearer SECRET123'}"),
        ("WANDB_HTTPS_PROXY", "ftp//user:SECRET123@proxy"),
        ("WANDB_BASE_URL", "ftp://user:SECRET123@host"),
    ],
)
def test_no_value_that_may_be_a_secret_is_shown(name: str, value: str) -> None:
    with pytest.raises(LaunchError) as caught:
        require_wandb(OFFLINE, {name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert "SECRET123" not in str(caught.value)


def test_the_address_of_a_server_is_shown_without_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:SECRET123@127.0.0.1:9")
    with pytest.raises(LaunchError) as caught:
        require_wandb(Destination("online", "p", None), {})
    assert "127.0.0.1:9: " in str(caught.value)
    assert "SECRET123" not in str(caught.value)


def test_unreadable_outcomes_are_skipped_and_nodes_share_no_file(tmp_path: Path) -> None:
    record(tmp_path, Outcome("1", "a seed 0", "cpt:a", failure="gone"))
    record(tmp_path, Outcome("2", "b seed 0", "cpt:b", failure="gone too"))
    files = sorted((tmp_path / "wandb-runs").iterdir())
    assert [path.name for path in files] == ["cpt.a.jsonl", "cpt.b.jsonl"]
    with files[0].open("ab") as stream:
        stream.write(b'[1]\n{"run_id": "3"}\n\xff\n{"run_id": "4", "na')
    assert upload_lines(tmp_path)[:3] == [
        "W&B has not received 2 of 2 runs:",
        "  a seed 0: gone",
        "  b seed 0: gone too",
    ]
