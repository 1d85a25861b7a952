"""Tokenizers: loading, identity, training a small one, and encoding documents for packs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from cpt_residual.errors import CompatibilityError, CorpusError
from cpt_residual.modeling.added_tokens import AddedTokens
from cpt_residual.modeling.side_files import refuse_code
from cpt_residual.modeling.text_encoder import FastTextEncoder
from cpt_residual.modeling.token_side import is_panic

Tokenizer = PreTrainedTokenizerFast


UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError),
    StrictDataclassError,
)
"""What transformers raises over files of another shape than it expects."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The fast tokenizer of a model directory. Never downloads, never runs the directory's code."""
    if not directory.is_dir():
        raise CompatibilityError(
            f"no tokenizer can be loaded from {directory}: no such directory",
            remedy="Give the directory of a saved model.",
        )
    try:
        tokenizer = cast("Any", AutoTokenizer).from_pretrained(
            str(directory),
            config=_light_config(directory),
            local_files_only=True,
            trust_remote_code=False,
        )
    except BaseException as error:
        if (
            not isinstance(error, (*UNREADABLE, AssertionError, RecursionError))
            and type(error) is not Exception
            and not is_panic(error)
        ):
            raise  # the tokenizers library raises nothing more special than Exception
        refuse_code(directory, error)
        raise CompatibilityError(
            f"no tokenizer can be loaded from {directory}",
            problems=[f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"],
            remedy="The directory needs tokenizer.json and tokenizer_config.json of the release.",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CompatibilityError(
            f"{directory} has only a slow tokenizer ({type(tokenizer).__name__})",
            remedy="Packing and the token maps need a tokenizer.json; convert it once.",
        )
    return tokenizer


def bos_id_of(tokenizer: Tokenizer) -> int | None:
    """The id that opens a document, for the tokenizers that name one."""
    bos_id = tokenizer.bos_token_id
    return bos_id if isinstance(bos_id, int) else None


def eos_id_of(tokenizer: Tokenizer) -> int:
    """The id that ends a document; an error when the tokenizer names none."""
    eos_id = tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        raise CompatibilityError(
            "the tokenizer names no EOS token",
            remedy="Documents could not be told apart: set eos_token in tokenizer_config.json.",
        )
    return eos_id


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The id that fills rows: the padding token, or EOS where none is named (never a label)."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else eos_id_of(tokenizer)


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Tokens by role (`eos_token`), as chat templates are given them."""
    tokens = cast("dict[str, object]", tokenizer.special_tokens_map)
    return {role: token for role, token in tokens.items() if isinstance(token, str)}


def special_tokens_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Added tokens that are marked special, by id."""
    added = backend_of(tokenizer).get_added_tokens_decoder()
    return {token_id: token.content for token_id, token in added.items() if token.special}


def backend_of(tokenizer: Tokenizer, *, specials_as_text: bool = False) -> tokenizers.Tokenizer:
    """An own copy of the Rust tokenizer that never truncates or pads.

    `specials_as_text`: text that looks like a special token is encoded as the plain text it is.
    """
    copy = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = specials_as_text
    return copy


def text_encoder(tokenizer: Tokenizer) -> FastTextEncoder:
    """Encodes documents for packs: BOS where the tokenizer adds it, EOS exactly once, at the end.

    Text that looks like a special token stays text; that of another added token becomes its id
    (`added_tokens` says why). Both are counted. Loss is on every token but the first.
    """
    return FastTextEncoder(
        backend=backend_of(tokenizer, specials_as_text=True),
        bos_id=bos_id_of(tokenizer),
        eos_id=eos_id_of(tokenizer),
        added=added_tokens_of(tokenizer),
    )


def added_tokens_of(tokenizer: Tokenizer) -> AddedTokens:
    """The added tokens to count: all but those that open and end documents, whose text is looked
    for nevertheless."""
    added = backend_of(tokenizer).get_added_tokens_decoder()
    ends = (bos_id_of(tokenizer), eos_id_of(tokenizer))
    ordinary = {
        token_id: token.content
        for token_id, token in added.items()
        if not token.special and token_id not in ends
    }
    return AddedTokens(special=special_tokens_of(tokenizer), ordinary=ordinary)


def train_bpe_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    eos_token: str,
    pad_token: str,
) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens; special tokens have the first ids.

    The same texts give the same tokenizer. No BOS, no chat template.
    """
    missing = {eos_token, pad_token} - set(special_tokens)
    assert not missing, f"not among the special tokens: {missing}"
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size()
    if found != vocab_size:
        raise CorpusError(
            f"the tokenizer's corpus gives {found} tokens, not the {vocab_size} asked for",
            remedy="Give it more varied text, or set vocab_size between"
            f" {256 + len(special_tokens)} and {max(found, 256 + len(special_tokens))}.",
        )
    others = [token for token in special_tokens if token not in (eos_token, pad_token)]
    make = cast("Callable[..., Tokenizer]", PreTrainedTokenizerFast)
    return make(
        tokenizer_object=backend,
        eos_token=eos_token,
        pad_token=pad_token,
        extra_special_tokens=others,
    )


def _light_config(directory: Path) -> PreTrainedConfig | None:
    """All that AutoTokenizer wants of a config where tokenizer_config.json names the tokenizer's
    class: the model type. None: it shall read the config itself, and thereby import the model's
    code and torch's compiler, which takes two seconds."""
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_bytes())
        named, own_code = settings.get("tokenizer_class"), "auto_map" in settings
        model_type = json.loads((directory / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if own_code or not (isinstance(named, str) and isinstance(model_type, str)):
        return None
    config = cast("Any", PreTrainedConfig)(name_or_path=str(directory))
    config.model_type = model_type
    return cast("PreTrainedConfig", config)
