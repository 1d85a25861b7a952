"""Initialise MKL's vector functions once, so that results are reproducible from the first step."""

from __future__ import annotations

from functools import cache

import torch

_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "tanh", "erf", "erfc", "erfinv"),
    *("exp", "log", "log10", "log2", "sqrt", "trunc"),
)
"""Elementwise functions that torch 2.13 takes from MKL where it is built with it (ATen,
cpu/vml.h)."""


@cache
def settle_vector_maths() -> None:
    """Call each of MKL's vector functions once from a single thread; again, it does nothing.

    MKL chooses a function's kernel during its first call. Where two threads make that call at the
    same time, one of them may compute its whole share with a kernel of low accuracy: errors of up
    to 2,500 ulp, in this call only, in 19 of 11,466 processes on two busy cores, in one of 20 where
    it was reported (pytorch/pytorch#188792: oneMKL 2024.2; not from 2025.0 on, with which this can
    go). The angles of the rotary embedding are such a call, so one of many equal trainings began
    with another loss in its last digit. Calls on 8 elements stay in the calling thread."""
    for dtype in (torch.float32, torch.float64):
        some = torch.full((8,), 0.5, dtype=dtype, device="cpu")
        for name in _FUNCTIONS:
            getattr(torch, name)(some)
