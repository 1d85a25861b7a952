"""Zero-copy conversion of raw elements to torch tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cpt_residual.weights.maths.arithmetic import Raw
from cpt_residual.weights.maths.dtypes import DtypeName

TORCH_DTYPES: Mapping[DtypeName, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}


def tensor_of(raw: Raw) -> Tensor:
    """Raw elements (see arithmetic.Raw) as a tensor of the dtype that they stand for."""
    if raw.dtype == np.uint16:
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)
