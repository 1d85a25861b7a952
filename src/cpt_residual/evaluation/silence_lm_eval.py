"""Suppress third-party output; progress goes through the run's own report."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from cpt_residual.evaluation.lazy_import import lazy_import

_LOGGERS = ("lm_eval", "transformers", "datasets", "huggingface_hub", "accelerate")


@contextmanager
def silence_lm_eval() -> Generator[None]:
    """Within: no log lines (what matters is raised), progress bars or warnings of lm-eval and HF,
    and none of lm-eval's side business (three subprocesses that describe the machine, a pool of
    processes for bootstrapping). Everything is put back on leaving."""
    evaluator, metrics = lazy_import("lm_eval.evaluator"), lazy_import("lm_eval.api.metrics")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            stack.enter_context(_level(logging.getLogger(name), logging.CRITICAL))
        for module in ("lm_eval.api.task", "lm_eval.models.huggingface"):
            stack.enter_context(patch.object(lazy_import(module), "tqdm", _NoBar))
        stack.enter_context(patch.object(evaluator, "add_env_info", _nothing))
        stack.enter_context(patch.object(evaluator, "get_git_commit_hash", _nothing))
        stack.enter_context(patch.object(metrics, "bootstrap_stderr", _bootstrap_stderr))
        stack.enter_context(_no_hub_bars())
        yield


@contextmanager
def _level(logger: logging.Logger, level: int) -> Generator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _no_hub_bars() -> Generator[None]:
    datasets, hub = lazy_import("datasets"), lazy_import("huggingface_hub.utils")
    transformers = lazy_import("transformers.utils.logging")
    bars = (
        (not datasets.are_progress_bars_disabled(), datasets, "progress_bars"),
        (not hub.are_progress_bars_disabled(), hub, "progress_bars"),
        (transformers.is_progress_bar_enabled(), transformers, "progress_bar"),
    )
    off = [(module, noun) for shown, module, noun in bars if shown]
    for module, noun in off:
        getattr(module, f"disable_{noun}")()
    try:
        yield
    finally:
        for module, noun in off:
            getattr(module, f"enable_{noun}")()


class _NoBar:
    """Stands for tqdm: iterates, and counts nothing."""

    def __init__(self, iterable: Any = (), *_args: object, **_kwargs: object) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def update(self, _n: int = 1) -> None:
        return None

    def close(self) -> None:
        return None


def _nothing(*_args: object, **_kwargs: object) -> None:
    return None


def _bootstrap_stderr(
    metric: Callable[[Sequence[Any]], float], items: Sequence[Any], iters: int
) -> float:
    """lm-eval's bootstrap in this process, seeded; it would start a pool of all cores."""
    rng = np.random.default_rng(0)
    draws = [[items[i] for i in rng.integers(0, len(items), len(items))] for _ in range(iters)]
    return float(np.std([metric(draw) for draw in draws], ddof=1))
