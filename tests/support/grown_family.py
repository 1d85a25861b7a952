"""A family whose members have added different tokens to one tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken

from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.training import PICO, write_model

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def grow(folder: Path, *, num_rows: int, scale: float) -> None:
    """Move the weights, and give embedding and head `num_rows` rows."""
    file = folder / "model.safetensors"
    random = np.random.default_rng(num_rows)
    tensors = {}
    for name, value in load_file(file).items():
        rows = [(0, num_rows - len(value)), (0, 0)] if name in VOCABULARY else [(0, 0)]
        wide = np.pad(value, rows if value.ndim == len(rows) else [(0, 0)] * value.ndim)
        noise = random.standard_normal(wide.shape, dtype=np.float32)
        tensors[name] = wide + np.float32(scale) * noise
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": num_rows}))


def grown_family(root: Path, *, model_type: str, tied: bool = True) -> dict[str, Path]:
    """A base without chat tokens, its instruct with ChatML added, its CPT with other tokens."""
    folders = {role: root / role for role in ("base", "instruct", "target")}
    architecture = PICO.model_copy(update={"model_type": model_type, "tie_word_embeddings": tied})
    write_model(folders["base"], architecture=architecture)
    for role in ("instruct", "target"):
        shutil.copytree(folders["base"], folders[role])
        tokenizer = load_tokenizer(folders[role])
        if role == "instruct":
            extra = ["<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>"]
            tokenizer.add_special_tokens({"extra_special_tokens": extra, "eos_token": "<|im_end|>"})
            tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
            tokenizer.chat_template = CHAT_ML
        else:
            tokenizer.add_tokens([AddedToken("<code>", normalized=False), "Städte"])
        tokenizer.save_pretrained(str(folders[role]))
        grow(folders[role], num_rows=len(tokenizer), scale=0.01)
    ids = TokenSide.read(folders["instruct"]).ids
    generation = {
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|im_start|>"],
        "suppress_tokens": [ids["<tool>"]],
        "temperature": 0.5,
    }
    (folders["instruct"] / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folders["instruct"] / "config.json").read_text())
    config |= {"pad_token_id": ids["<|im_start|>"], "bos_token_id": None}
    (folders["instruct"] / "config.json").write_text(json.dumps(config))
    return folders
