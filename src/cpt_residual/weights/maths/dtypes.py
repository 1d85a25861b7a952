"""The dtypes that weights are stored in, by their names in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

DtypeName = Literal["BF16", "F16", "F32"]
TORCH_NAMES: Mapping[DtypeName, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
