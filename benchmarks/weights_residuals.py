"""What a user of the `residuals` package runs; started by `weights.py` with that package's Python.

python weights_residuals.py compute BASE INSTRUCT OUT DTYPE
python weights_residuals.py apply TARGET RESIDUAL OUT DTYPE
"""

from __future__ import annotations

import sys

import torch
from residuals import Residuals
from transformers import AutoTokenizer


def main() -> None:
    verb, first, second, out, dtype_name = sys.argv[1:]
    dtype = getattr(torch, dtype_name)
    if verb == "compute":
        found = Residuals.from_models(
            base_model=first,
            instruct_model=second,
            instruct_tokenizer=AutoTokenizer.from_pretrained(second),
            dtype=dtype,
        )
        found.save_pretrained(out)
    else:
        Residuals.apply_to_pretrained(
            first, second, out_dir=out, dtype=dtype, base_tokenizer_name=first
        )


if __name__ == "__main__":
    main()
