"""How many threads the verbs use when nobody says."""

from __future__ import annotations

import pytest

from cpt_residual.cli import options


@pytest.mark.parametrize(("cores", "threads"), [(1, 6), (2, 6), (8, 16), (16, 32), (64, 32)])
def test_the_default_follows_the_cores_within_bounds(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "usable_cores", lambda: cores)
    assert options.num_threads(None) == threads
    assert options.num_threads(3) == 3
