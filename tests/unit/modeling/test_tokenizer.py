"""Token maps, the trained BPE, and documents as token ids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from cpt_residual.errors import CompatibilityError, CorpusError
from cpt_residual.modeling.token_side import first_differing_ids, token_map_hash
from cpt_residual.modeling.tokenizer import (
    Tokenizer,
    backend_of,
    bos_id_of,
    eos_id_of,
    load_tokenizer,
    pad_id_of,
    special_tokens_of,
    text_encoder,
    train_bpe_tokenizer,
)
from support.tiny_tokenizer import SPECIAL_TOKENS, bos_tokenizer, save, texts, tiny_tokenizer, train


class Vocabulary:
    def __init__(self, **ids: int) -> None:
        self._ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self._ids


def test_the_hash_is_of_the_map_and_of_nothing_else(tmp_path: Path) -> None:
    assert token_map_hash(Vocabulary(a=0, b=1)) == token_map_hash(Vocabulary(b=1, a=0))
    assert token_map_hash(Vocabulary(a=0, b=1)) != token_map_hash(Vocabulary(a=1, b=0))
    assert token_map_hash(Vocabulary(a=0, b=1)) != token_map_hash(Vocabulary(a=0, b=1, c=2))
    tokenizer = train()
    before = token_map_hash(tokenizer)
    tokenizer.chat_template = "anything"
    tokenizer.eos_token = "<|end|>"
    assert token_map_hash(load_tokenizer(save(tokenizer, tmp_path))) == before
    tokenizer.add_tokens(["<|more|>"])
    assert token_map_hash(tokenizer) != before


def test_differing_ids_are_shown_in_order() -> None:
    a, b = Vocabulary(x=0, y=1, z=2), Vocabulary(x=0, z=1, y=2, new=7)
    assert first_differing_ids(a, b, 5) == [
        "id 1: 'y' vs 'z'",
        "id 2: 'z' vs 'y'",
        "id 7: - vs 'new'",
    ]
    assert first_differing_ids(a, b, 1) == ["id 1: 'y' vs 'z'"]
    assert first_differing_ids(a, a, 5) == []


def test_the_trained_tokenizer_is_what_was_asked_for(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 280
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (bos_id_of(tokenizer), eos_id_of(tokenizer), pad_id_of(tokenizer)) == (None, 1, 0)
    assert special_tokens_of(tokenizer) == dict(enumerate(SPECIAL_TOKENS))
    assert tokenizer.chat_template is None
    text = "any bytes: naïve 日本 \x00\t\n  end"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    loaded = load_tokenizer(save(tokenizer, tmp_path))
    assert loaded.encode(text) == tokenizer.encode(text)


TRAIN = """
import hashlib, random, sys
from cpt_residual.modeling.tokenizer import backend_of, train_bpe_tokenizer
rng = random.Random(0)
texts = [" ".join("".join(rng.choices("abcdef", k=4)) for _ in range(20)) for _ in range(400)]
made = train_bpe_tokenizer(
    texts, vocab_size=700, special_tokens=["<e>", "<p>"], eos_token="<e>", pad_token="<p>"
)
sys.stdout.write(hashlib.sha256(backend_of(made).to_str().encode()).hexdigest())
"""


def test_training_is_the_same_in_every_process() -> None:
    """More merges than the text decides: ties must be broken the same way, on all threads."""
    root = Path(__file__).parents[3]
    path = f"import sys; sys.path[:0] = [{str(root / 'src')!r}]\n"
    command = [sys.executable, "-c", path + TRAIN]
    hashes = {subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout for _ in range(2)}
    assert len(hashes) == 1


def test_a_corpus_too_small_for_the_vocabulary() -> None:
    with pytest.raises(CorpusError, match="gives 264 tokens, not the 5000 asked for"):
        train_bpe_tokenizer(
            ["the city"] * 3,
            vocab_size=5000,
            special_tokens=["<e>", "<p>"],
            eos_token="<e>",
            pad_token="<p>",
        )


def test_text_gets_eos_exactly_once_and_no_bos() -> None:
    documents = texts(20, seed=5)
    for text, (ids, loss) in zip(documents, text_encoder(tiny_tokenizer())(documents), strict=True):
        assert ids.tolist() == [*tiny_tokenizer().encode(text), 1]
        assert ids.dtype == np.uint32
        assert loss.tolist() == [False] + [True] * (len(ids) - 1)


def test_text_gets_the_bos_that_the_tokenizer_adds() -> None:
    ((ids, _),), (bos, eos) = text_encoder(bos_tokenizer())(["the city"]), (2, 1)
    assert ids[0] == bos_id_of(bos_tokenizer()) == bos
    assert ids[-1] == eos
    assert (ids == bos).sum() == (ids == eos).sum() == 1


def test_an_eos_that_the_tokenizer_adds_is_not_doubled() -> None:
    backend = backend_of(train())
    backend.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 1)]
    )
    tokenizer = Tokenizer(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<pad>")
    ((ids, _),) = text_encoder(tokenizer)(["the city"])
    assert (ids == 1).sum() == 1
    assert ids[-1] == 1


def test_a_truncating_tokenizer_truncates_nothing() -> None:
    tokenizer = train()
    tokenizer.backend_tokenizer.enable_truncation(4)
    ((ids, _),) = text_encoder(tokenizer)(["the city of Anna Berg likes bread and new boats"])
    assert len(ids) > 8


def test_a_plain_token_as_eos_is_refused() -> None:
    tokenizer = Tokenizer(tokenizer_object=backend_of(train()), pad_token="<pad>")
    with pytest.raises(CompatibilityError, match="names no EOS token"):
        text_encoder(tokenizer)
    backend = json.loads(backend_of(train()).to_str())
    backend["added_tokens"] = []
    plain = Tokenizer(tokenizer_object=type(backend_of(train())).from_str(json.dumps(backend)))
    plain._special_tokens_map["eos_token"] = "t"
    with pytest.raises(CompatibilityError, match=r"EOS id .* out of plain text"):
        text_encoder(plain)(["q t q t q"])


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", None])
def test_it_is_the_tokenizer_that_transformers_loads(
    model_type: str, tokenizer_class: str | None, tmp_path: Path
) -> None:
    folder = save(bos_tokenizer(), tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = tokenizer_class
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(folder)
    expected = cast("Any", AutoTokenizer).from_pretrained(str(folder))
    assert type(loaded) is type(expected)
    assert token_map_hash(loaded) == token_map_hash(expected)
    assert backend_of(loaded).to_str() == backend_of(expected).to_str()
    assert loaded.special_tokens_map == expected.special_tokens_map
    assert eos_id_of(loaded) == expected.eos_token_id


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match="no such directory"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
