"""MKL's vector functions give the same bits from their first call on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import environment, run_code
from support.training import write_model

LOAD = """
import sys
from pathlib import Path
import torch
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.vector_maths import settle_vector_maths
assert settle_vector_maths.cache_info().currsize == 0
load_causal_lm(Path(sys.argv[1]), dtype=torch.float32)
print(settle_vector_maths.cache_info().currsize)
"""

STORM = """
import os, sys, time
import torch
from cpt_residual.modeling.vector_maths import settle_vector_maths

def first_call_differs(name):
    torch.set_num_threads(2)
    if sys.argv[2] == "settled":
        settle_vector_maths()
    angles = torch.arange(1, 65537) / 656
    first, second = torch.empty_like(angles), torch.empty_like(angles)
    getattr(torch, name)(angles, out=first)
    getattr(torch, name)(angles, out=second)
    return not torch.equal(first, second)

end, calls, wrong = time.monotonic() + float(sys.argv[1]), 0, 0
while time.monotonic() < end:
    for name in ("exp", "cos", "sin"):
        child = os.fork()  # each child makes its first call; the parent never makes one
        if child == 0:
            os._exit(first_call_differs(name))
        wrong += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        calls += 1
print(calls, wrong)
"""


def test_a_model_is_loaded_with_settled_functions(tmp_path: Path) -> None:
    done = run_code(LOAD, str(write_model(tmp_path / "model")), cwd=tmp_path)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.slow
def test_first_calls_by_two_threads_are_right() -> None:
    """Two storms of new processes at once, since the race needs load. Without settling, one in some
    hundred to ten thousand first calls was wrong on a processor with AVX-512."""
    command = [sys.executable, "-c", STORM, "60", "settled"]
    # Threads that wait asleep, as in every process that the package starts: many more calls.
    calm = environment() | {"GOMP_SPINCOUNT": "10000"}
    storms = [
        subprocess.Popen(command, env=calm, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [tuple(map(int, storm.communicate()[0].split())) for storm in storms]
    for calls, wrong in results:
        assert calls > 1000
        assert wrong == 0
