"""Elements of a target and its two models, as flat bf16 arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.arithmetic import Raw

Exact = npt.NDArray[np.float64]

MINUS_ZERO, SUBNORMAL, LARGEST, INFINITE, NAN = 0x8000, 0x0001, 0x7F7F, 0xFF80, 0x7FC1
"""bf16 as bits."""


@dataclass(frozen=True)
class Three:
    target: Raw
    base: Raw
    instruct: Raw


def bf16(values: Exact) -> Raw:
    return arithmetic.round_once(values, "BF16")


def realistic(num: int, seed: int) -> Three:
    generator = np.random.default_rng(seed)
    base = generator.normal(0, 0.02, num)
    one, other = generator.normal(0, 1e-3, (2, num))
    return Three(bf16(base + one), bf16(base), bf16(base + other))


def any_bits(num: int, seed: int) -> Three:
    """All exponents, below 2^100."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (3, num), dtype=np.uint16)
    return Three(*np.where((bits & 0x7F80) >= (227 << 7), 0x3F80, bits))


def like_sized(num: int, centre: int, width: int, seed: int) -> Three:
    """Finite elements whose exponents lie within `width` of one another."""
    generator = np.random.default_rng(seed)
    exponents = np.clip(centre + generator.integers(0, width + 1, (3, num)), 0, 254)
    others = generator.integers(0, 1 << 8, (3, num))  # sign and fraction
    bits = exponents << 7 | (others & 0x7F) | (others >> 7) << 15
    return Three(*bits.astype(np.uint16))
