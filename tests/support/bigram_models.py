"""Models that say exactly what a test wants: each token is always followed by a given one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from cpt_residual.modeling.chat import install_chat_side
from cpt_residual.modeling.initialise import write_initial_model
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.training import PICO

VOCAB_SIZE = 280
_TEXTS = [f"the {a} of {b} is {c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
_ONE_HOT = PICO.model_copy(
    update={
        "hidden_size": 288,
        "num_layers": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
)


def write_random(folder: Path, *, seed: int = 0, positions: int = 128, tied: bool = True) -> Path:
    """A pico model with random weights, and the chat side of an instruct model."""
    changes = {"max_position_embeddings": positions, "tie_word_embeddings": tied}
    architecture = PICO.model_copy(update=changes)
    write_initial_model(folder, architecture=architecture, texts=_TEXTS, seed=seed)
    install_chat_side(folder, folder)
    return folder


def write_bigram(folder: Path, follows: Mapping[str, str], *, otherwise: str) -> Path:
    """Every token is followed by `follows[token]`, or by `otherwise`. Embeddings are one-hot and
    the layer adds nothing, so the logits name the successor of the last token exactly."""
    write_initial_model(folder, architecture=_ONE_HOT, texts=_TEXTS, seed=0)
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(folder, dtype=torch.float32)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        weights["model.embed_tokens.weight"].copy_(torch.eye(VOCAB_SIZE, _ONE_HOT.hidden_size))
        weights["lm_head.weight"].zero_()
        for token, token_id in tokenizer.get_vocab().items():
            successor = tokenizer.convert_tokens_to_ids(follows.get(token, otherwise))
            weights["lm_head.weight"][successor, token_id] = 1.0
    model.save_pretrained(folder)
    install_chat_side(folder, folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
