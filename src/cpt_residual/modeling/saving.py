"""Write a trained model next to the small files of the model it came from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from cpt_residual.errors import WorkerError
from cpt_residual.modeling.loading import WeightFiles

__all__ = [
    "carry_side_files",
    "no_progress_bars",
    "save_weights",
    "share_weights",
    "verify_weights",
]

_SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_FOLDERS = ("chat", "additional_chat_templates")
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
    """Let others read the weights: safetensors writes them for their owner only."""
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)


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
    """Copy tokenizer, generation config, chat files and config.json of `start` as they are.

    Only the dtype field of config.json follows the weights: nothing else about the model has
    changed, `use_cache` included, which training switches off in memory."""
    for name in _SIDE_FILES:
        if (start / name).is_file():
            shutil.copyfile(start / name, out / name)
    for name in _FOLDERS:
        if (start / name).is_dir():
            shutil.copytree(start / name, out / name, dirs_exist_ok=True)
    config = json.loads((start / "config.json").read_text())
    field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[field] = _NAMES[str(dtype)]
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def verify_weights(out: Path, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Raise WorkerError unless the files hold exactly the expected tensors, in `dtype`.

    Some set-ups (ZeRO-3 without a gather) end with exit code 0 and empty or no weights."""
    facts = WeightFiles(out).facts()
    problems = [f"{name}: missing" for name in sorted(expected.keys() - facts.keys())]
    problems += [
        f"{name}: not part of the start model" for name in sorted(facts.keys() - expected.keys())
    ]
    for name in sorted(expected.keys() & facts.keys()):
        shape, found = facts[name]
        if shape != expected[name] or 0 in shape:
            problems.append(f"{name}: shape {shape}, wanted {expected[name]}")
        if found != dtype:
            problems.append(f"{name}: {found}, wanted {dtype}")
    if problems:
        raise WorkerError(
            "the trained model was not written whole",
            problems=problems,
            remedy="Nothing was published. This is a defect: please report it with these lines.",
        )
