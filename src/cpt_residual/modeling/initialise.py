"""Initialise a model: random weights, a trained tokenizer, and chat template metadata.

The folder looks like a released base model. What a release would keep in its instruct model (chat
template, tokenizer config, generation config) lies in `chat/` until instruction tuning installs
it, because dialogues are packed before any instruct model exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from cpt_residual.config.schema import Architecture
from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE, write_chat_folder
from cpt_residual.modeling.loading import settle_vector_maths
from cpt_residual.modeling.saving import no_progress_bars, share_weights
from cpt_residual.modeling.tokenizer import Tokenizer, train_bpe_tokenizer

PADDING = "<pad>"
DOCUMENT_END = "<|endoftext|>"
TURN_END = "<|end|>"
SPECIAL_TOKENS = (PADDING, DOCUMENT_END, "<|user|>", "<|assistant|>", TURN_END)

_CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {"llama": LlamaConfig, "qwen2": Qwen2Config}


def write_initial_model(
    out: Path, *, architecture: Architecture, texts: Iterable[str], seed: int
) -> int:
    """Write the model directory; returns the number of parameters (tied ones counted once).

    The weights depend on architecture and seed only, the tokenizer on the texts only; the bytes
    are the same each time. The process's random generators are left as they were."""
    tokenizer = train_bpe_tokenizer(
        texts,
        vocab_size=architecture.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        eos_token=DOCUMENT_END,
        pad_token=PADDING,
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    config = _config(architecture, tokenizer)
    settle_vector_maths()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast("Any", AutoModelForCausalLM).from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    model.generation_config = GenerationConfig(
        eos_token_id=_id_of(tokenizer, DOCUMENT_END), pad_token_id=_id_of(tokenizer, PADDING)
    )
    with no_progress_bars():
        model.save_pretrained(out)
    share_weights(out)
    write_chat_folder(
        out,
        chat_template=TINY_CHAT_TEMPLATE,
        end_token=TURN_END,
        end_ids=[_id_of(tokenizer, TURN_END), _id_of(tokenizer, DOCUMENT_END)],
    )
    return sum(parameter.numel() for parameter in model.parameters())


def _config(architecture: Architecture, tokenizer: Tokenizer) -> PreTrainedConfig:
    return _CONFIGS[architecture.model_type](
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.max_position_embeddings,
        tie_word_embeddings=architecture.tie_word_embeddings,
        initializer_range=architecture.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        bos_token_id=None,
        eos_token_id=_id_of(tokenizer, DOCUMENT_END),
        pad_token_id=_id_of(tokenizer, PADDING),
    )


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    return cast("int", tokenizer.convert_tokens_to_ids(token))
