"""What a user of the `residuals` package runs; started by `weights.py` with that package's Python.

python weights_residuals.py compute OUT DTYPE BASE INSTRUCT
python weights_residuals.py apply OUT DTYPE TARGET RESIDUAL
python weights_residuals.py merge OUT DTYPE TARGET BASE INSTRUCT

merge: both steps in one process; the residual is not written.
"""

from __future__ import annotations

import sys

import torch
from residuals import Residuals
from transformers import AutoTokenizer


def main() -> None:
    verb, out, dtype_name, *models = sys.argv[1:]
    dtype = getattr(torch, dtype_name)
    if verb == "compute":
        _residual(*models, dtype=dtype).save_pretrained(out)
    elif verb == "apply":
        target, residual = models
        Residuals.apply_to_pretrained(
            target, residual, out_dir=out, dtype=dtype, base_tokenizer_name=target
        )
    else:
        target, base, instruct = models
        found = _residual(base, instruct, dtype=dtype)
        found.apply(target, out_dir=out, model_dtype=dtype, base_tokenizer_name=target)


def _residual(base: str, instruct: str, *, dtype: torch.dtype) -> Residuals:
    return Residuals.from_models(
        base_model=base,
        instruct_model=instruct,
        instruct_tokenizer=AutoTokenizer.from_pretrained(instruct),
        dtype=dtype,
    )


if __name__ == "__main__":
    main()
