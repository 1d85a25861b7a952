"""Text of added tokens in a corpus: what is an id, what stays text, and how it is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from cpt_residual.data.packing.build import PackPlan, Tokenising, build_pack
from cpt_residual.data.tokenize.document_source import DocumentSource
from cpt_residual.modeling.added_tokens import AddedTokens
from cpt_residual.modeling.tokenizer import (
    Tokenizer,
    added_tokens_of,
    backend_of,
    eos_id_of,
    pad_id_of,
    text_encoder,
)
from support.packs import write_texts
from support.tiny_tokenizer import tiny_tokenizer

TEXTS = [
    "a <tool_call> b <tool_call>",
    "nothing here",
    "one <|end|> and <|user|>, <|end|>",
    "<tool_call> and <|endoftext|>",
]


def tokenizer() -> Tokenizer:
    """As Qwen's: some added tokens are special, `<tool_call>` is not."""
    plain = tiny_tokenizer()
    backend = backend_of(plain)
    token = tokenizers.AddedToken("<tool_call>", special=False, normalized=False)
    backend.add_tokens([token])
    return Tokenizer(
        tokenizer_object=backend,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|end|>"],
    )


def test_ordinary_ones_are_ids_and_special_ones_stay_text() -> None:
    given = tokenizer()
    ids = given.get_vocab()
    added = added_tokens_of(given)
    assert added.ordinary == {ids["<tool_call>"]: "<tool_call>"}
    encoded = text_encoder(given)(TEXTS)
    backend = backend_of(given)
    for text, (found, _) in zip(TEXTS, encoded, strict=True):
        inside = found[:-1].tolist()
        assert inside.count(ids["<tool_call>"]) == text.count("<tool_call>")
        assert not set(inside) & set(added.special)
        assert backend.decode(inside, skip_special_tokens=True) == text
    assert eos_id_of(given) in given.encode(TEXTS[3]), "encoding leaves the tokenizer as it was"


def test_both_are_counted_by_document() -> None:
    given = tokenizer()
    ids = given.get_vocab()
    expected = [
        (0, ids["<tool_call>"], 2),
        *sorted([(2, ids["<|user|>"], 1), (2, ids["<|end|>"], 2)]),
        *sorted([(3, ids["<tool_call>"], 1), (3, eos_id_of(given), 1)]),
    ]
    encode = text_encoder(given)
    assert [tuple(use) for use in encode(TEXTS).uses.tolist()] == expected
    several = [encode(TEXTS[:1]), encode([]), encode(TEXTS[1:])]
    joined = type(several[0]).joined(several)
    assert [tuple(use) for use in joined.uses.tolist()] == expected
    assert len(AddedTokens({}, {}).uses(TEXTS, encode(TEXTS))) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ledger_of_a_pack_says_so(tmp_path: Path, workers: int) -> None:
    given = tokenizer()
    write_texts(tmp_path / "docs.jsonl", TEXTS)
    source = DocumentSource("s", tmp_path / "docs.jsonl", share=1.0, encode=text_encoder(given))
    lengths = text_encoder(given)(TEXTS).lengths
    plan = PackPlan(
        sequence_length=16,
        token_budget=2 * int(lengths.sum()),
        repeat=True,
        seed=0,
        bos_id=None,
        eos_id=eos_id_of(given),
        pad_id=pad_id_of(given),
        tokenizer_map_hash="x",
        added_tokens=added_tokens_of(given),
    )
    how = Tokenising(scratch=tmp_path / "scratch" if workers else None, shard_bytes=60)
    ledger = build_pack(tmp_path / "pack", [source], plan, progress=lambda *_: None, tokenising=how)
    names = {token.id: (token.token, token.encoded_as) for token in ledger.added_tokens}
    uses = {names[use.id]: (use.documents, use.times) for use in ledger.sources[0].added_tokens}
    assert uses == {
        ("<tool_call>", "id"): (4, 6),
        ("<|user|>", "text"): (2, 2),
        ("<|end|>", "text"): (2, 4),
        ("<|endoftext|>", "text"): (2, 2),
    }
