"""Model directories in any dtype, sharding and tying: fake ones in milliseconds, and real ones."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE, install_chat_side
from cpt_residual.weights.io.checkpoint import Checkpoint, open_checkpoint
from support import tiny_tokenizer
from support.training import PICO, write_model

Tensors = dict[str, torch.Tensor]

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


@cache
def tokenizer_folder() -> Path:
    """A saved tokenizer with a chat template, kept until the process ends."""
    tokenizer = tiny_tokenizer.train()
    tokenizer.chat_template = TINY_CHAT_TEMPLATE
    return tiny_tokenizer.save(tokenizer, Path(tempfile.mkdtemp(prefix="pico-tokenizer-")))


def write_weights(folder: Path, tensors: Tensors, *, num_shards: int = 1) -> None:
    """Tensors dealt in turn to shards; one shard is `model.safetensors` without an index."""
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::num_shards]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def fake_model(
    folder: Path, tensors: Tensors, *, num_shards: int = 1, config: Mapping[str, object] = CONFIG
) -> Path:
    """A directory with any tensors, which need not load as a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    for file in tokenizer_folder().iterdir():
        shutil.copy(file, folder / file.name)
    write_weights(folder, tensors, num_shards=num_shards)
    return folder


def opened(folder: Path, role: str = "target") -> Checkpoint:
    return open_checkpoint(folder, role=role)


def read_all(folder: Path) -> Tensors:
    """Every tensor of a directory, read by the safetensors library."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def raw_shard(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file with any header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)
    )


def real_family(root: Path, *, model_type: str, tied: bool, dtype: torch.dtype) -> dict[str, Path]:
    """base, instruct and base_cpt of a pico model that transformers loads; instruct has the chat
    side and two shards."""
    architecture = PICO.model_copy(update={"model_type": model_type, "tie_word_embeddings": tied})
    folders = {name: root / name for name in ("base", "instruct", "base_cpt")}
    write_model(folders["base"], architecture=architecture)
    start = load_file(folders["base"] / "model.safetensors")
    for seed, (name, folder) in enumerate(folders.items()):
        if name != "base":
            shutil.copytree(folders["base"], folder)
            (folder / "model.safetensors").unlink()
        generator = torch.Generator().manual_seed(seed)
        scale = 0.01 if seed else 0.0
        moved = {
            key: (value + scale * torch.randn(value.shape, generator=generator)).to(dtype)
            for key, value in start.items()
        }
        write_weights(folder, moved, num_shards=2 if name == "instruct" else 1)
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config))
    install_chat_side(folders["base"], folders["instruct"])
    return folders
