from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.core.stage import RunContext
from cpt_residual.core.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ctx(tmp_path: Path) -> RunContext:
    return RunContext(run_dir=tmp_path / "runs" / "one")
