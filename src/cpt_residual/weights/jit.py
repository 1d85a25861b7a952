"""Compilation of kernels: numba, without the interpreter lock, kept on disk where possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def jit(function: Kernel) -> Kernel:
    """`function` as machine code. Compiled at its first call for each combination of types, in
    about half a second; the code is kept beside the source, or in the user's cache directory, or,
    where neither can be written, only for this process. Floats are neither reordered nor fused."""
    compiled = cast("Any", numba)
    try:
        return cast("Kernel", compiled.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba found no directory that it may write
        return cast("Kernel", compiled.njit(nogil=True)(function))
