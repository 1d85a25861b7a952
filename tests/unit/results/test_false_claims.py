"""With all variants equal, at most 5 % of reports claim that one is better or worse."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "experiments" / "statistics" / "simulate.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("simulate_reports", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [194, 541])
@pytest.mark.parametrize("experiment", ["tiny", "tiny_methods"])
def test_few_reports_make_a_false_claim(simulation: Any, experiment: str, num_prompts: int) -> None:
    found = simulation.simulate(experiment, num_prompts=num_prompts, reports=300)
    assert found.before > 0.2, "so many tests, each at 5 %, would often claim something"
    assert found.after <= 0.05
