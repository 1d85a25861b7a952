"""What holds for every test: calm property tests, and GPU tests only where there is a GPU."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# Time limits of single examples only measure how busy the machine is. The examples are the same in
# every run; `pytest --hypothesis-profile=explore` draws new ones.
settings.register_profile("calm", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("calm")

# A shell that starts the tests in the background has them, and all their children, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
