"""Tokenizer metadata of a model directory: which id means which token, and which token ends a text.

Importing the tokenizers of transformers costs 1.6 s and 250 MB, and a merge has to run within
0.5 GiB. The `tokenizers` library reads the map from tokenizer.json in a tenth of both; where
transformers might add tokens of its own to it, transformers is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Protocol, cast

import tokenizers
from pydantic import BaseModel, JsonValue, TypeAdapter

from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    ROLES_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    json_object,
)
from cpt_residual.modeling.templates import read_templates

_END = "<|endoftext|>"  # what the classes of GPT-2 and Qwen add where the files do not name it
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "TokenizersBackend": (),
    "PreTrainedTokenizerFast": (),
    "GPT2Tokenizer": (_END,),
    "GPT2TokenizerFast": (_END,),
    "Qwen2Tokenizer": (_END,),
    "Qwen2TokenizerFast": (_END,),
}
"""Classes of transformers that keep the ids of tokenizer.json, with the tokens that each adds."""
_MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "gpt2": (_END,),
    "granite": (),
    "llama": (),
    "olmo2": (),
    "qwen2": (_END,),
    "qwen3": (_END,),
    "smollm3": (),
}
"""Model types for which transformers takes no class but one of `_CLASSES` when that is named."""

JsonObject = dict[str, JsonValue]


class Vocabulary(Protocol):
    """Whatever has an id for every token (all tokenizers of transformers do)."""

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class TokenSide:
    """Tokenizer metadata of a model directory.

    ids: token to id, added tokens included. added: tokens that are looked for in the text as a
    whole, and whether each is special. eos_token: None where no token ends a text.
    """

    ids: Mapping[str, int]
    added: Mapping[str, bool]
    eos_token: str | None
    has_template: bool

    @classmethod
    def read(cls, folder: Path) -> TokenSide:
        """What transformers would say of the tokenizer in `folder`.

        Price: 0.4 s and 130 MB for 128,000 tokens, but once for each of the last two
        tokenizer.json; seconds and 400 MB where transformers has to be asked. Raises
        CompatibilityError when no tokenizer can be loaded.
        """
        try:
            return _read_files(folder)
        except (OSError, ValueError):
            return _read_with_transformers(folder)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to token."""
        return {token_id: token for token, token_id in self.ids.items()}

    @property
    def special_ids(self) -> Mapping[int, str]:
        """Added tokens that are marked special, by id."""
        return {self.ids[token]: token for token, special in self.added.items() if special}

    @property
    def eos_id(self) -> int | None:
        return None if self.eos_token is None else self.ids.get(self.eos_token)

    def get_vocab(self) -> dict[str, int]:
        """`ids`, under the name that transformers gives them."""
        return dict(self.ids)


def token_map_hash(tokenizer: Vocabulary) -> str:
    """sha256 over the sorted (id, token) pairs, added tokens included: the identity of the map."""
    pairs = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    lines = (f"[{number}, {encode_basestring_ascii(token)}]\n" for number, token in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def first_differing_ids(a: Vocabulary, b: Vocabulary, limit: int) -> list[str]:
    """Up to `limit` lines `id 7: 'x' vs 'y'` (`-` for none) where the two maps disagree, by id."""
    left, right = (
        {token_id: repr(token) for token, token_id in side.get_vocab().items()} for side in (a, b)
    )
    lines = (
        f"id {token_id}: {left.get(token_id, '-')} vs {right.get(token_id, '-')}"
        for token_id in sorted(left.keys() | right.keys())
        if left.get(token_id) != right.get(token_id)
    )
    return [line for line, _ in zip(lines, range(limit), strict=False)]


class _DecoderEntry(BaseModel):
    content: str
    special: bool = False


_DECODER = TypeAdapter(dict[int, _DecoderEntry])


def _read_files(folder: Path) -> TokenSide:
    """Raises OSError or ValueError where transformers has to be asked."""
    config = json_object((folder / TOKENIZER_CONFIG_FILE).read_bytes())
    required = _default_tokens(folder, config)
    backend = _backend((folder / TOKENIZER_FILE).read_bytes())
    roles = dict(_named_tokens(config))
    if (decoder := config.get("added_tokens_decoder")) is not None:
        entries = _DECODER.validate_python(decoder).items()
        stated = {(number, entry.content, entry.special) for number, entry in entries}
        same = stated == {(backend.ids[token], token, s) for token, s in backend.added.items()}
    else:  # files of older versions, which transformers reads only without a decoder
        roles |= _named_tokens(_optional_object(folder / ROLES_FILE))
        extra = _optional_object(folder / "added_tokens.json").items()
        same = all(token in backend.added and backend.ids[token] == id_ for token, id_ in extra)
    named = {*required, *backend.pad_token, *roles.values()}
    if not same or "eos_token" not in roles or not all(map(backend.added.get, named)):
        raise ValueError("transformers would add tokens, mark them special, or name a default")
    return TokenSide(
        ids=backend.ids,
        added=backend.added,
        eos_token=roles["eos_token"],
        has_template=any(read_templates(folder).values()),
    )


def _default_tokens(folder: Path, config: JsonObject) -> tuple[str, ...]:
    """Tokens that the tokenizer's class may add; raises ValueError for classes not known to keep
    the ids of tokenizer.json."""
    declared = str(config.get("tokenizer_class"))
    model_type = str(_optional_object(folder / CONFIG_FILE).get("model_type", "llama"))
    unusual = {"auto_map", "fast_tokenizer_files"} & config.keys()
    if unusual or declared not in _CLASSES or model_type not in _MODEL_TYPES:
        raise ValueError(f"{declared} of {model_type}: only transformers knows its tokens")
    return _CLASSES[declared] + _MODEL_TYPES[model_type]


@dataclass(frozen=True)
class _Backend:
    """What tokenizer.json alone says. pad_token: where it pads, the token it pads with."""

    ids: Mapping[str, int]
    added: Mapping[str, bool]
    pad_token: tuple[str, ...]


@lru_cache(maxsize=2)  # the models of a merge have one tokenizer.json, or that of CPT beside it
def _backend(raw: bytes) -> _Backend:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(raw)
    except BaseException as error:
        if is_panic(error):
            raise ValueError(str(error)) from error
        raise
    padding = cast("dict[str, str] | None", tokenizer.padding)
    added = tokenizer.get_added_tokens_decoder().values()
    return _Backend(
        ids=tokenizer.get_vocab(),
        added={token.content: token.special for token in added},
        pad_token=(padding["pad_token"],) if padding else (),
    )


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic of the tokenizers library, which is no Exception and has no name to
    import it by; a corrupt normalizer causes one."""
    return type(error).__name__ == "PanicException"


def _named_tokens(config: JsonObject) -> Iterator[tuple[str, str]]:
    """Role and token of every token that the file names; lists of tokens get numbered roles."""
    for key, value in config.items():
        if key in ("extra_special_tokens", "additional_special_tokens"):
            values = list(value.values()) if isinstance(value, dict) else value
            for number, item in enumerate(values if isinstance(values, list) else []):
                yield f"{key}.{number}", _content(item)
        elif key.endswith("_token") and value is not None and not isinstance(value, bool):
            yield key, _content(value)


def _content(value: JsonValue) -> str:
    """A token, written as a string or as transformers writes an added token."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no token")  # noqa: TRY004 - as a bad file is
    return text


def _optional_object(path: Path) -> JsonObject:
    return json_object(path.read_bytes()) if path.is_file() else {}


def _read_with_transformers(folder: Path) -> TokenSide:
    from cpt_residual.modeling.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    eos: object = tokenizer.eos_token
    return TokenSide(
        ids=tokenizer.get_vocab(),
        added={token.content: token.special for token in decoder.values()},
        eos_token=eos if isinstance(eos, str) else None,
        has_template=bool(cast("object", tokenizer.chat_template)),
    )
