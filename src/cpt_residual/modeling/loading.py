"""Strict loading of a model directory: nothing is resized, re-initialised or cast."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.class_names import is_left_over
from cpt_residual.modeling.side_files import CONFIG_FILE, refuse_code
from cpt_residual.modeling.tokenizer import UNREADABLE

_MAX_MESSAGE = 400


_VECTOR_FUNCTIONS = (
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
        for name in _VECTOR_FUNCTIONS:
            getattr(torch, name)(some)


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in `folder`. Raises CompatibilityError where transformers
    needs the code that the model ships (which is never run), or cannot make sense of config.json.
    """
    with _readable(folder):
        config = cast("Any", AutoConfig).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return cast("PreTrainedConfig", config)


def config_of_fields(fields: Mapping[str, JsonValue], *, role: str) -> PreTrainedConfig | None:
    """The configuration that the fields of a config.json make, None where the installed
    transformers has no such class; `role` names its model. Raises as `load_config`."""
    model_type = str(fields.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return None
    try:
        config = cast("Any", CONFIG_MAPPING[model_type]).from_dict(
            deepcopy(dict(fields))
        )  # it writes into them
        text = config.get_text_config(decoder=True)
    except UNREADABLE as error:
        raise _does_not_load(f"{role}: {CONFIG_FILE}", error) from error
    if not isinstance(text, PreTrainedConfig):
        problem = TypeError(f"its text part is {text!r}, not an object")
        raise _does_not_load(f"{role}: {CONFIG_FILE}", problem)
    return cast("PreTrainedConfig", config)


def declared_fields(config: PreTrainedConfig) -> dict[str, object]:
    """The fields that the class of `config` has beside those of all classes, by the names that
    most classes have for them (`hidden_size` for `n_embd`)."""
    common = {field.name for field in fields_of(PreTrainedConfig)}
    usual = {own: name for name, own in type(config).attribute_map.items()}
    names = [field.name for field in fields_of(type(config)) if field.name not in common]
    return {usual.get(name, name): getattr(config, name, None) for name in names}


def _does_not_load(file: str, error: Exception) -> CompatibilityError:
    return CompatibilityError(
        f"{file} does not load",
        problems=[_one_line(error) or type(error).__name__],
        remedy="Use a model of an architecture that the installed transformers knows, or "
        "download config.json again.",
    )


def load_causal_lm(
    folder: Path, *, dtype: torch.dtype | None, attention: str | None = "sdpa"
) -> PreTrainedModel:
    """The model with all its weights in `dtype` (None: as config.json says), on the CPU (sharded
    under DeepSpeed ZeRO-3). `attention` None: what transformers chooses; sdpa: eager for classes
    that do not have it (Gemma 2, GPT-J, BLOOM).

    Raises CompatibilityError naming every tensor that is missing, superfluous or of another
    shape: transformers would fill those with random numbers."""
    settle_vector_maths()
    attention = _attention_of(load_config(folder), attention)
    with _loadable(folder):
        model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    _require_all_used(folder, report)
    return cast("PreTrainedModel", model)


def _attention_of(config: PreTrainedConfig, wanted: str | None) -> str | None:
    if wanted != "sdpa":
        return wanted
    kind = cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING).get(type(config), None)
    return wanted if getattr(kind, "_supports_sdpa", True) else "eager"


def require_known_tensors(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """CompatibilityError, as `load_causal_lm` gives it, unless tensors of these names and shapes
    are those of the model that config.json in `folder` describes. No weight is read or allocated.
    """
    config = load_config(folder)
    kind = type(build_on_meta(config))
    with torch.device("meta"):
        state = {name: torch.empty(tuple(shape)) for name, shape in shapes.items()}
    with _loadable(folder):
        _, report = cast("Any", kind).from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, with all the others
            trust_remote_code=False,
            output_loading_info=True,
        )
    _require_all_used(folder, report)


@contextmanager
def _readable(folder: Path | None) -> Generator[None]:
    """What transformers says of a config.json that it cannot use, or of code that it may not run,
    as a CompatibilityError. `folder` None: the configuration does not come from a directory."""
    try:
        yield
    except UNREADABLE as error:
        file = CONFIG_FILE
        if folder is not None:
            refuse_code(folder, error)
            file = str(folder / CONFIG_FILE)
        raise _does_not_load(file, error) from error


@contextmanager
def _loadable(folder: Path) -> Generator[None]:
    """As `_readable`, for a model whose config.json has been read: its weights may be to blame."""
    try:
        yield
    except (*UNREADABLE, SafetensorError) as error:
        refuse_code(folder, error)
        raise CompatibilityError(
            f"{folder}: the model does not load",
            problems=[f"{type(error).__name__}: {_one_line(error)}"],
            remedy="Its weights are missing or cannot be read, or config.json describes no model "
            "that transformers can build. See to the directory, or download it again.",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_MESSAGE]


def _require_all_used(folder: Path, report: Mapping[str, Sequence[object]]) -> None:
    problems = [
        f"{kind.removesuffix('_keys')}: {found}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for found in sorted(map(_told, report[kind]))
        if kind != "unexpected_keys" or not is_left_over(found)
    ]
    if problems:
        raise CompatibilityError(
            f"the weights in {folder} are not those of its config.json",
            problems=problems,
            remedy="transformers would put random tensors in the place of missing ones, and leave "
            "others out. Fetch or save the model again.",
        )


def _told(found: object) -> str:
    if not isinstance(found, tuple):
        return str(found)
    name, stored, wanted = cast("tuple[str, Sequence[int], Sequence[int]]", found)
    return f"{name}: {tuple(stored)} stored, {tuple(wanted)} by config.json"


@contextmanager
def _unsharded() -> Generator[None]:
    """In a rank of ZeRO-3, transformers would shard whatever model is made."""
    reference = cast("Any", hf_deepspeed)._hf_deepspeed_config_weak_ref  # noqa: SLF001 - no getter
    active = reference() if reference is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if active is not None:
            hf_deepspeed.set_hf_deepspeed_config(active)


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without storage: names, shapes and FLOPs can be asked, nothing is allocated.

    Attention and experts are those whose matrix products torch's FLOP counter sees and that run
    without values: an expert is as many products as it has tokens."""
    folder = Path(str(config.name_or_path))  # "." for the text model of a nested configuration
    known = bool(config.name_or_path) and (folder / CONFIG_FILE).is_file()
    with torch.device("meta"), _unsharded(), _readable(folder if known else None):
        model = cast("Any", AutoModelForCausalLM).from_config(
            config,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="batched_mm",
            trust_remote_code=False,
        )
    return cast("PreTrainedModel", model)
