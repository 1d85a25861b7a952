"""The process of the checks: what is said when it is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.errors import WorkerError
from cpt_residual.stages import preflight
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.registry import localised


def _killed(experiment: object, report: object) -> None:
    del experiment, report
    print("loading\nweights", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_checks_that_are_killed_show_what_they_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their log is deleted, so the message does not refer to it."""
    monkeypatch.setattr(preflight, "check_all", _killed)
    builder = Builder.of(localised(compose(["+experiment=llama3_500m", f"paths.root={tmp_path}"])))
    with pytest.raises(WorkerError, match="SIGKILL") as caught:
        preflight.preflight(builder, Overview.of(builder.graph, builder.store))
    assert caught.value.problems[-2:] == ("loading", "weights")
    assert "micro_batch_rows" not in caught.value.remedy
    assert "run the same command again" in caught.value.remedy
