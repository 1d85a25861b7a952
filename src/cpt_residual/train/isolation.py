"""Isolate a training in a long-lived process: threads, random state, environment are restored."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Generator
from typing import Any, cast

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers.utils import logging as transformers_logging

from cpt_residual.launch.environment import preserved_environment


@contextlib.contextmanager
def isolated(*, threads: int) -> Generator[None]:
    """Run with `threads` torch threads; afterwards restore threads, random generators, the
    environment, verbosity and accelerate's process-wide state, and free the model's memory."""
    threads_before = torch.get_num_threads()
    python, torch_cpu = random.getstate(), torch.random.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - Trainer seeds the legacy generator
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    _reset_accelerate()
    # What is alive now cannot be this training's garbage; leaving it out makes each of the
    # collections that follow 20 times cheaper (accelerate asks for several).
    gc.freeze()
    try:
        with preserved_environment():
            torch.set_num_threads(threads)
            transformers_logging.disable_progress_bar()
            yield
    finally:
        _reset_accelerate()
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.random.set_rng_state(torch_cpu)
        torch.set_num_threads(threads_before)
        gc.collect()
        gc.unfreeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _reset_accelerate() -> None:
    """Forget the process-wide state, so that the next Accelerator starts from nothing (accelerate's
    own tests do the same; there is no public way)."""
    for state in (AcceleratorState, PartialState, GradientState):
        cast("Any", state)._reset_state()  # noqa: SLF001
