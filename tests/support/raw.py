"""The weights engine's arithmetic on torch tensors: raw elements in, raw elements out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.arithmetic import NO_CORRECTIONS, Corrections, Proof, Raw
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.maths.torch_bridge import TORCH_DTYPES, tensor_of
from cpt_residual.weights.tokens.vocab_alignment import new_rows

NAME_OF: dict[torch.dtype, DtypeName] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def raw_of(tensor: torch.Tensor) -> Raw:
    """A flat copy of a tensor's elements as the engine reads them."""
    flat = tensor.detach().reshape(-1).clone()
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    return flat.numpy()


def add_scaled(
    target: torch.Tensor,
    delta: torch.Tensor,
    alpha: float,
    corrections: Corrections = NO_CORRECTIONS,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    name = NAME_OF[dtype or target.dtype]
    raw = arithmetic.add_scaled(raw_of(target), delta.numpy(), alpha, corrections, dtype=name)
    return tensor_of(raw)


def residual(base: torch.Tensor, instruct: torch.Tensor) -> tuple[torch.Tensor, Corrections, Proof]:
    difference, corrections, proof = arithmetic.residual(
        raw_of(base), raw_of(instruct), NAME_OF[instruct.dtype]
    )
    return torch.from_numpy(difference), corrections, proof


def round_once(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor_of(arithmetic.round_once(exact.numpy(), NAME_OF[dtype]))


def merge_rows(
    rows: npt.NDArray[np.float32],
    *,
    alpha: float,
    dtype: DtypeName,
    means: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
) -> Raw:
    """Rows of tokens that only instruct has, rounded once."""
    return arithmetic.round_once(
        new_rows(rows.astype(np.float64), strength=alpha, means=means), dtype
    )
