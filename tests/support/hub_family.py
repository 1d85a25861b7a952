"""Families of small models that look like the releases on the hub (`hub_configs`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE
from cpt_residual.modeling.saving import no_progress_bars
from support.hub_configs import Fields
from support.hub_releases import RELEASES, config_of
from support.pico_family import Tensors
from support.tiny_tokenizer import tiny_tokenizer

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class HubFamily(NamedTuple):
    """The two releases, and base after CPT as `save_pretrained` of today writes it."""

    base: Path
    instruct: Path
    target: Path


def write_hub_family(root: Path, name: str) -> HubFamily:
    """base, instruct and target of the family `name` below `root`."""
    folders = HubFamily(*(root / side for side in HubFamily._fields))
    release = RELEASES[name]
    start = _released(config_of(name), root / ".start")
    write_release(folders.base, name, "base", moved(start, 0.0))
    write_release(folders.instruct, name, "instruct", moved(start, 0.01, seed=1))
    for side, generation in (
        ("base", release.generation),
        ("instruct", release.instruct_generation),
    ):
        if generation is not None:
            _write_json(root / side / "generation_config.json", generation)
    write_target(folders.base, folders.target)
    return folders


def write_release(folder: Path, name: str, side: str, tensors: Tensors) -> Path:
    """A model directory as on the hub: config.json, a tokenizer, tensors in the release's dtype
    and under its names, with those that no parameter reads."""
    release, config = RELEASES[name], config_of(name, side)
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    write_tokenizer(folder, chat=side == "instruct")
    dtype = _DTYPES[str(config.get("torch_dtype", "float32"))]
    # No negative zeros, whose sign no addition gives back.
    stored = {_spelled(name, key): value.to(dtype) + 0 for key, value in tensors.items()}
    if release.unread:
        stored |= unread_tensors(config, dtype)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def unread_tensors(config: Fields, dtype: torch.dtype) -> Tensors:
    """Buffers that older versions of transformers saved beside the parameters."""
    mask = torch.ones(1, 1, 64, 64).tril()
    inv_freq = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    found: Tensors = {}
    for layer in range(2):
        match config["model_type"]:
            case "gpt2":
                found[f"h.{layer}.attn.bias"] = mask.clone()
            case "gptj":
                prefix = f"transformer.h.{layer}.attn"
                found |= {
                    f"{prefix}.bias": mask.bool(),
                    f"{prefix}.masked_bias": torch.tensor(-1e9),
                }
            case "gpt_neox":
                prefix = f"gpt_neox.layers.{layer}.attention"
                found[f"{prefix}.bias"] = mask.bool()
                found[f"{prefix}.masked_bias"] = torch.tensor(-1e9).to(torch.float32)
                found[f"{prefix}.rotary_emb.inv_freq"] = inv_freq[:1].clone().to(dtype)
            case _:
                found[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inv_freq.clone()
    return found


def write_tokenizer(folder: Path, *, chat: bool) -> None:
    """The tiny tokenizer as older versions saved one: the template lies in tokenizer_config.json.
    Instruct's texts end with the end of an answer."""
    tiny_tokenizer().save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if chat:
        config |= {"chat_template": TINY_CHAT_TEMPLATE, "eos_token": "<|end|>"}
        extra = [token for token in config["extra_special_tokens"] if token != "<|end|>"]
        config["extra_special_tokens"] = [*extra, "<|endoftext|>"]
    _write_json(path, config)


def write_target(base: Path, out: Path, *, seed: int = 2) -> Path:
    """`base` loaded, moved and saved by the installed transformers."""
    with no_progress_bars():
        model = cast("Any", AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                step = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_((parameter.float() + step).to(parameter.dtype))
        model.save_pretrained(out)
    write_tokenizer(out, chat=False)
    return out


def moved(tensors: Tensors, scale: float, *, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + scale * torch.randn(value.shape, generator=generator)
        for name, value in tensors.items()
    }


def _released(config: Fields, scratch: Path) -> Tensors:
    """Random fp32 weights under the names of the release: saving maps what loading maps."""
    kept = {key: value for key, value in config.items() if key not in {"auto_map", "torch_dtype"}}
    scratch.mkdir(parents=True)
    _write_json(scratch / "config.json", kept)
    with torch.random.fork_rng(devices=[]), no_progress_bars():
        torch.manual_seed(0)
        settings = AutoConfig.from_pretrained(scratch)
        model = cast("Any", AutoModelForCausalLM).from_config(settings, dtype=torch.float32)
        model.save_pretrained(scratch)
    tensors = load_file(scratch / "model.safetensors")
    shutil.rmtree(scratch)
    return tensors


def _spelled(name: str, key: str) -> str:
    written, released = RELEASES[name].spelled
    return released + key.removeprefix(written) if written and key.startswith(written) else key


def _write_json(path: Path, fields: Fields) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")
