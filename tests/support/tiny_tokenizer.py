"""Tokenizers made in milliseconds: plain byte-level BPE, and one that adds BOS as Llama's does."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from cpt_residual.modeling.tokenizer import Tokenizer, backend_of, train_bpe_tokenizer

SPECIAL_TOKENS = ("<pad>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
WORDS = (
    "the",
    "city",
    "of",
    "Anna",
    "Berg",
    "likes",
    "bread",
    "and",
    "new",
    "boats",
    "naïve",
    "日本",
)


def texts(num: int, *, seed: int = 0, max_words: int = 12) -> list[str]:
    """Made-up sentences of 1 to `max_words` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, max_words))) for _ in range(num)]


def train(vocab_size: int = 280) -> Tokenizer:
    return train_bpe_tokenizer(
        texts(300),
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        eos_token="<|endoftext|>",
        pad_token="<pad>",
    )


@cache
def tiny_tokenizer() -> Tokenizer:
    """280 tokens, no BOS (as Qwen)."""
    return train()


@cache
def bos_tokenizer() -> Tokenizer:
    """The same with `<|user|>` as a BOS that the tokenizer itself puts first (as Llama)."""
    backend = backend_of(train())
    backend.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", 2)]
    )
    return Tokenizer(
        tokenizer_object=backend,
        bos_token="<|user|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        extra_special_tokens=["<|assistant|>", "<|end|>"],
    )


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    return directory
