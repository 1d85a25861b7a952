"""A text that is encoded part by part has the ids that it has as a whole."""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from cpt_residual.errors import CorpusError
from cpt_residual.modeling import text_encoder
from cpt_residual.modeling.text_chunks import chunks, cut_rule, together
from cpt_residual.modeling.text_encoder import FastTextEncoder

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + ENDING
    + "|" + CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + ENDING
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
SAMPLE = [
    "The town's harbour isn't far;  they'll say  it WAS 1234 miles.\n\nNo...\r\n",
    "def f(x):\n    return x[0] + 'don't'\t# 你好。世界,naïve café\n",
    "<tool_call> <|eos|> 12 345 678  \u2581 a\u2581b   c",
] * 4
PIECES = [
    *"aABz'sdm 019.,;()/_\n\r\t",
    *("  ", "   ", "\u4f60", "\u597d", "\u3002", "\uff0c", "\xe9", "e\u0301", "\u0301"),
    *("\u304c", "\u304c\u3099", "\u2581", "\x1c", "\x85", "\xa0", "\u3000", "\u200b", "\ufb1d"),
    *("\xa8", "\u0130", "\u03a3", "\U0001f600", "\0"),
    *("<tool_call>", "<tool", "_response>", "<|eos|>", "the", " town", "'ll", "'S"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
Layout = dict[str, Any]


def _trained(words: pre_tokenizers.PreTokenizer | None, **model: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**model))
    if words is not None:
        backend.pre_tokenizer = words
    is_bytes = isinstance(words, pre_tokenizers.ByteLevel)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if is_bytes else []
    if not is_bytes:
        backend.normalizer = normalizers.Replace(" ", "\u2581")
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet if is_bytes else [],
        special_tokens=["<|eos|>", *(() if is_bytes else alphabet)],
        show_progress=False,
    )
    backend.train_from_iterator(SAMPLE, trainer)
    return backend


@cache
def _base(kind: str) -> str:
    if kind == "bytes":
        return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str()
    words = pre_tokenizers.Metaspace() if kind == "words" else None
    return _trained(words, byte_fallback=True, unk_token="<|eos|>").to_str()


def _split(expression: str, *, invert: bool = False) -> Layout:
    behavior = "Removed" if invert else "Isolated"
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


BYTES: Layout = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTES_ONLY = BYTES | {"use_regex": False}
DIGITS: Layout = {"type": "Digits", "individual_digits": True}
SPACES: Layout = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND: Layout = {"type": "Prepend", "prepend": "\u2581"}


def _metaspace(scheme: str, *, split: bool) -> Layout:
    common = {"type": "Metaspace", "replacement": "\u2581"}
    return common | {"prepend_scheme": scheme, "split": split}


def _sequence(*steps: Layout, name: str = "pretokenizers") -> Layout:
    return {"type": "Sequence", name: list(steps)}


LAYOUTS: Mapping[str, tuple[str, Layout]] = {
    "GPT-2": ("bytes", {"pre_tokenizer": BYTES | {"use_regex": True}}),
    "RoBERTa": ("bytes", {"pre_tokenizer": BYTES | {"use_regex": True, "add_prefix_space": True}}),
    "GPT-NeoX": (
        "bytes",
        {"pre_tokenizer": BYTES | {"use_regex": True}, "normalizer": {"type": "NFC"}},
    ),
    "SmolLM": ("bytes", {"pre_tokenizer": _sequence(DIGITS, BYTES | {"use_regex": True})}),
    "Llama 3": ("bytes", {"pre_tokenizer": _sequence(_split(LLAMA3), BYTES_ONLY)}),
    "GPT-4": ("bytes", {"pre_tokenizer": _sequence(_split(LLAMA3, invert=True), BYTES_ONLY)}),
    "Qwen 2": (
        "bytes",
        {"pre_tokenizer": _sequence(_split(QWEN), BYTES_ONLY), "normalizer": {"type": "NFC"}},
    ),
    "NFKD": (
        "bytes",
        {"pre_tokenizer": _sequence(_split(LLAMA3), BYTES_ONLY), "normalizer": {"type": "NFKD"}},
    ),
    "GPT-4o": ("bytes", {"pre_tokenizer": _sequence(_split(O200K), BYTES_ONLY)}),
    "GPT-2, written out": ("bytes", {"pre_tokenizer": _sequence(_split(GPT2), BYTES_ONLY)}),
    "Llama 2": (
        "words",
        {"pre_tokenizer": None, "normalizer": _sequence(PREPEND, SPACES, name="normalizers")},
    ),
    "Gemma": (
        "words",
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
            "normalizer": SPACES,
        },
    ),
    "Mistral": (
        "words",
        {"pre_tokenizer": _metaspace("first", split=True), "normalizer": None},
    ),
    **{
        f"Llama, {scheme}": (
            "words",
            {"pre_tokenizer": _metaspace(scheme, split=False), "normalizer": None},
        )
        for scheme in ("always", "first", "never")
    },
    "NFKC, undivided": (
        "words",
        {"pre_tokenizer": _metaspace("first", split=False), "normalizer": {"type": "NFKC"}},
    ),
    "T5": (
        "words",
        {
            "pre_tokenizer": _sequence(
                {"type": "WhitespaceSplit"}, _metaspace("always", split=True)
            ),
            "normalizer": None,
        },
    ),
}
ADDED = {
    "<tool_call>": {"lstrip": True},
    "  ": {"normalized": True},
    "   ": {"normalized": True},
    "\n\n": {},
    "a b": {},
    "<tool_response>": {},
}


@cache
def encoder(name: str, size: int, *, added: bool) -> FastTextEncoder:
    kind, changes = LAYOUTS[name]
    backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(_base(kind)) | changes))
    if added and name != "Llama 2":
        for content, flags in ADDED.items():
            token = tokenizers.AddedToken(content, special=False, **({"normalized": False} | flags))
            backend.add_tokens([token])
    backend.encode_special_tokens = True
    eos_id = backend.token_to_id("<|eos|>")
    return FastTextEncoder(backend, None, eos_id, chunk_characters=size)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
@given(text=TEXTS, size=st.integers(1, 7))
def test_parts_have_the_ids_of_the_whole(name: str, *, added: bool, text: str, size: int) -> None:
    whole = encoder(name, 10_000, added=added)([text])
    parts = encoder(name, size, added=added)([text])
    assert np.array_equal(parts.ids, whole.ids)
    assert np.array_equal(parts.lengths, whole.lengths)


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_are_short(name: str) -> None:
    text = "".join(SAMPLE)
    rule = cut_rule(encoder(name, 10, added=True).backend)
    assert rule is not None
    parts = list(chunks(text, rule, 10))
    assert "".join(parts) == text
    assert len(parts) > len(text) / 40


@given(st.lists(st.integers(1, 30).map("a".__mul__)), st.integers(1, 40))
def test_what_is_encoded_together_is_bounded(parts: list[str], size: int) -> None:
    groups = list(together(parts, size))
    assert [part for group in groups for part in group] == parts
    assert [len(group) for group in groups[:1]] == [1] * bool(parts)
    assert all(sum(map(len, group)) <= size for group in groups if len(group) > 1)
    later = pairwise(groups[1:])
    assert all(sum(map(len, group)) + len(after[0]) > size for group, after in later)


@pytest.mark.parametrize("name", LAYOUTS)
def test_not_every_place_is_one_to_cut_at(name: str) -> None:
    """So the tests above would see a wrong one."""
    encode = encoder(name, 10_000, added=True)
    text = SAMPLE[0]
    whole = encode([text]).ids.tolist()
    cut = [
        encode([text[:at]]).ids.tolist()[:-1] + encode([text[at:]]).ids.tolist()
        for at in range(1, len(text))
    ]
    assert sum(each != whole for each in cut) > len(text) / 3


SPLIT_ODD = _split(LLAMA3.replace(r"\s+(?!\S)", r"\s*\p{L}\s"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("undivided", {"pre_tokenizer": None, "normalizer": SPACES}),  # merges across spaces
        ("bytes", {"pre_tokenizer": _sequence(SPLIT_ODD, BYTES_ONLY)}),
        ("bytes", {"pre_tokenizer": BYTES_ONLY}),
        ("bytes", {"normalizer": {"type": "StripAccents"}}),
        ("bytes", {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}),
        ("words", {"pre_tokenizer": None, "normalizer": None}),
        (
            "undivided",
            {"pre_tokenizer": _metaspace("first", split=False), "normalizer": None},
        ),
        (
            "words",
            {
                "pre_tokenizer": _metaspace("first", split=False) | {"replacement": "_"},
                "normalizer": None,
            },
        ),
        *(
            ("bytes", {"pre_tokenizer": _sequence(step, _metaspace("first", split=split))})
            for step in (BYTES | {"use_regex": True}, _split(LLAMA3))
            for split in (True, False)
        ),
        (
            "bytes",
            {"pre_tokenizer": _sequence(BYTES | {"use_regex": True}, {"type": "UnicodeScripts"})},
        ),
    ],
)
def test_what_is_not_known_has_no_rule(kind: str, changes: Layout) -> None:
    backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(_base(kind)) | changes))
    assert cut_rule(backend) is None


@pytest.mark.parametrize(
    ("content", "flags"),
    [("a b", {"normalized": True}), ("<x>", {"rstrip": True}), ("<x>", {"single_word": True})],
)
def test_added_tokens_that_look_beyond_a_cut(content: str, flags: dict[str, bool]) -> None:
    backend = tokenizers.Tokenizer.from_str(_base("bytes"))
    assert cut_rule(backend) is not None
    token = tokenizers.AddedToken(content, special=False, **({"normalized": False} | flags))
    backend.add_tokens([token])
    assert cut_rule(backend) is None


def test_a_text_that_cannot_be_cut_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "MAX_UNDIVIDED_CHARACTERS", 50)
    encode = encoder("GPT-2", 10, added=False)
    assert len(encode(["a" * 40 + " b" * 40])) == 1
    with pytest.raises(CorpusError, match="81 characters cannot be encoded part by part") as caught:
        encode(["b " * 10 + "a" * 61])
    assert caught.value.problems[1].startswith("70 characters without a place")
    encode = pickle.loads(pickle.dumps(encode))
    assert encode.chunk_characters == 10


def test_no_character_turns_into_one_that_ends_with_a_space() -> None:
    """On which the rule for spaces rests, whatever the normaliser."""
    everything = [chr(number) for number in range(0x110000) if not 0xD800 <= number < 0xE000]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        turned = [unicodedata.normalize(form, each) for each in everything if not each.isspace()]
        assert not any(each.endswith(" ") for each in turned), form
