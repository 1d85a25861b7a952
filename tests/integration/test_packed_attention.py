"""A packed row through a model gives each document the logits it gets alone.

B rows, T tokens of a row, V tokens of the vocabulary.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from cpt_residual.data.packing.pack_format import PackView, open_pack
from cpt_residual.data.packing.rows import CONTINUATION, PADDING, START
from cpt_residual.data.tokenize.document_source import DocumentSource, Packing
from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE, ChatEncoder
from cpt_residual.modeling.tokenizer import text_encoder
from support.packs import dialogue, pack, plan, write_dialogues, write_texts
from support.tiny_tokenizer import texts, tiny_tokenizer

LENGTH = 64
SIZES = {
    "vocab_size": 280,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for a leak to show
}
CONFIGS: dict[str, type[PreTrainedConfig]] = {"llama": LlamaConfig, "qwen2": Qwen2Config}


@pytest.fixture(scope="module", params=["concat_chunk", "best_fit"])
def view(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> PackView:
    """Text (some of it longer than a row), dialogues, and a last row that is cut and padded."""
    packing: Packing = request.param
    num_rows = 120 if packing == "best_fit" else 9  # best fit gives its first rows late
    folder = tmp_path_factory.mktemp("pack")
    rng = random.Random(1)
    sentences = texts(40)
    chat = [dialogue(rng.choice(sentences), rng.choice(sentences)) for _ in range(40)]
    chat = [one for one in chat if sum(len(turn["content"]) for turn in one) < LENGTH - 4]
    long = [" ".join(texts(30, seed=2)), *sentences]
    if packing == "best_fit":
        long += [" ".join(sentences[first : first + 4]) for first in range(36)]
    encode, encode_chat = (
        text_encoder(tiny_tokenizer()),
        ChatEncoder(tiny_tokenizer(), TINY_CHAT_TEMPLATE),
    )
    sources = [
        DocumentSource(
            "text",
            write_texts(folder / "t.jsonl", long),
            share=0.6,
            encode=encode,
            packing=packing,
        ),
        DocumentSource(
            "chat",
            write_dialogues(folder / "c.jsonl", chat),
            share=0.4,
            encode=encode_chat,
            packing="whole",
        ),
    ]
    pack(folder, sources, plan(LENGTH, num_rows * LENGTH - 40, repeat=True))
    return open_pack(folder)


def make(model_type: str, implementation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[model_type](**SIZES)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def segments(view: PackView, number: int) -> list[tuple[int, int]]:
    starts = [int(i) for i in np.flatnonzero(np.array(view.flags[number]) & START)]
    return list(zip(starts, [*starts[1:], view.sequence_length], strict=True))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_packed_forward_equals_separate_forwards(
    view: PackView, model_type: str, implementation: str
) -> None:
    model = make(model_type, implementation)
    rows = [view.row(number) for number in range(len(view))]
    ids_BT, positions_BT = (torch.from_numpy(np.stack([row[i] for row in rows])) for i in (0, 1))
    with torch.no_grad():
        packed_BTV = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
        num_segments, largest = 0, 0.0
        for number in range(len(view)):
            for first, last in segments(view, number):
                alone_TV = model(input_ids=ids_BT[number : number + 1, first:last]).logits[0]
                error = (packed_BTV[number, first:last] - alone_TV).abs().max().item()
                largest = max(largest, error)
                num_segments += 1
    assert num_segments > 1.5 * len(view), "the rows hold several documents each"
    if view.ledger.sources[0].packing == "best_fit":
        assert (np.array(view.flags)[:, 1:] & CONTINUATION).any(), "parts within a row"
    assert (np.array(view.flags) & PADDING).any(), "padding is part of the test"
    assert largest < 1e-5


def test_a_leak_would_show(view: PackView) -> None:
    """The measure is sharp: positions that do not restart change the logits a lot."""
    model = make("llama", "sdpa")
    number = max(range(len(view)), key=lambda row: len(segments(view, row)))
    ids_BT = torch.from_numpy(view.row(number)[0])[None]
    first, last = segments(view, number)[-1]
    with torch.no_grad():
        leaking = model(input_ids=ids_BT, use_cache=False).logits[0, first:last]
        alone = model(input_ids=ids_BT[:, first:last], use_cache=False).logits[0]
    assert (leaking - alone).abs().max() > 0.01


def test_the_loss_is_that_of_the_documents_alone(view: PackView) -> None:
    """Sum of the packed cross entropies = sum over documents, each scored by itself."""
    model = make("llama", "sdpa")
    packed = alone = 0.0
    with torch.no_grad():
        for number in range(len(view)):
            ids, positions, labels = (torch.from_numpy(part)[None] for part in view.row(number))
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            packed += summed_loss(logits, labels)
            for first, last in segments(view, number):
                if last - first > 1:
                    part = slice(first, last)
                    logits = model(input_ids=ids[:, part], use_cache=False).logits
                    alone += summed_loss(logits, labels[:, part])
    assert packed == pytest.approx(alone, rel=1e-6)


def summed_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> float:
    return torch.nn.functional.cross_entropy(
        logits_BTV[0, :-1], labels_BT[0, 1:], ignore_index=-100, reduction="sum"
    ).item()
