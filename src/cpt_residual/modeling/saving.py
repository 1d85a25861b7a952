"""Write a trained model next to the small files of the model it came from."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from cpt_residual.core.files import copy_files as copy_folder
from cpt_residual.core.files import write_json_atomic
from cpt_residual.modeling.side_files import (
    CHAT_FOLDER,
    CONFIG_FILE,
    GENERATION_FILE,
    carry_tokenizer,
    copy_files,
    forget_code,
    read_json_object,
)

_NAMES = {
    str(dtype): str(dtype).removeprefix("torch.")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def save_weights(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor], out: Path, *, dtype: torch.dtype
) -> None:
    """Write `state` (all of one dtype; tied tensors under one storage) as safetensors, with a
    config.json that `carry_side_files` replaces."""
    out.mkdir(parents=True, exist_ok=True)
    wrong = sorted(name for name, tensor in state.items() if tensor.dtype != dtype)
    assert not wrong, f"not in {dtype}: {wrong}"
    with no_progress_bars():
        model.save_pretrained(out, state_dict=dict(state))
    share_weights(out)


def share_weights(out: Path) -> None:
    """Let those read the weights who may read config.json, by the user's umask: safetensors writes
    for the owner only."""
    mode = stat.S_IMODE((out / CONFIG_FILE).stat().st_mode)
    for path in out.glob("*.safetensors"):
        path.chmod(mode)


@contextlib.contextmanager
def no_progress_bars() -> Generator[None]:
    """transformers draws bars of its own over the terminal's."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def carry_side_files(start: Path, out: Path, *, dtype: torch.dtype) -> None:
    """Copy the small files of `start`: tokenizer and processor side, generation config, chat
    folder, config.json.

    Only the dtype field of config.json follows the weights: nothing else about the model has
    changed, `use_cache` included, which training switches off in memory. What names code to run
    is left out (see `forget_code`)."""
    carry_tokenizer(start, out)
    copy_files(start, out, (GENERATION_FILE,))
    if (start / CHAT_FOLDER).is_dir():
        copy_folder(start / CHAT_FOLDER, out / CHAT_FOLDER)
    config = read_json_object(start / CONFIG_FILE, "start model")
    field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[field] = _NAMES[str(dtype)]
    write_json_atomic(out / CONFIG_FILE, config)
    forget_code(out)
