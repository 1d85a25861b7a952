"""Which id means which token, read from a model directory's small files.

Importing the tokenizers of transformers costs 1.6 s and 250 MB, and a merge has to run within
0.5 GiB. tokenizer.json alone decides the map in the layouts that `_read_light` knows; any other
layout is read by transformers, so that the map is always the one that transformers gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from cpt_residual.core import kept
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    ROLES_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)
from cpt_residual.modeling.templates import read_templates

_EOS = "eos_token"
_DEFAULT = "<|endoftext|>"  # what the classes of GPT-2 and Qwen name where the files are silent
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "TokenizersBackend": (),
    "PreTrainedTokenizerFast": (),
    "GPT2Tokenizer": (_DEFAULT,),
    "GPT2TokenizerFast": (_DEFAULT,),
    "Qwen2Tokenizer": (_DEFAULT,),
    "Qwen2TokenizerFast": (_DEFAULT,),
}
"""Classes of transformers that keep the ids of tokenizer.json; the tokens that each one adds."""
_MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "gpt2": (_DEFAULT,),
    "granite": (),
    "llama": (),
    "olmo2": (),
    "qwen2": (_DEFAULT,),
    "qwen3": (_DEFAULT,),
    "smollm3": (),
}
"""Model types for which transformers takes no class but one of `_CLASSES` when that is named."""
_NOT_OF_THE_MAP = frozenset(
    {"chat_template", "clean_up_tokenization_spaces", "model_max_length", "padding_side"}
)

_WORTH_KEEPING = 1 << 20  # bytes of a tokenizer.json

JsonObject = dict[str, JsonValue]


class _UnusualError(Exception):
    """The files are not of a layout whose map can be told without transformers."""


class _Ids(Mapping[str, int]):
    """Token to id of a tokenizer.json of which only the added tokens are known as yet; another one
    is looked for in its bytes."""

    def __init__(self, raw: bytes, added: Mapping[str, int], size: int) -> None:
        self._raw, self._added, self._size = raw, added, size

    @cached_property
    def _all(self) -> Mapping[str, int]:
        found = _parsed_tokens(self._raw)[0]
        assert len(found) == self._size, "the same bytes have the same tokens"
        return found

    def __getitem__(self, token: str) -> int:
        known = self._added.get(token)
        return self._all[token] if known is None else known

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return self._size

    def items(self) -> ItemsView[str, int]:
        return self._all.items()


@dataclass(frozen=True)
class TokenMap:
    """Token to id, added tokens included.

    added: tokens that are looked for in the text as a whole (token -> whether it is special).
    sha256: of the tokenizer.json that alone decides the map, or None.
    """

    ids: Mapping[str, int]
    added: Mapping[str, bool]
    sha256: str | None = None

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to token."""
        return {token_id: token for token, token_id in self.ids.items()}

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """All ids."""
        if self.sha256 is not None:  # they have no gaps
            return np.arange(len(self.ids))
        return np.fromiter(self.ids.values(), dtype=np.int64, count=len(self.ids))

    @cached_property
    def hash(self) -> str:
        """The same digest as `modeling.tokenizer.token_map_hash`."""
        lines = (
            f"[{token_id}, {encode_basestring_ascii(token)}]\n"
            for token_id, token in sorted((number, token) for token, number in self.ids.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class TokenSide:
    """The map of a model directory, the token that ends its text (None: it names none), and
    whether it has a chat template."""

    map: TokenMap
    eos_token: str | None
    has_template: bool

    @classmethod
    def read(cls, folder: Path, *, like: TokenSide | None = None) -> TokenSide:
        """The token side of a model directory.

        `like`: a side already read; when both have the same tokenizer.json, its map is taken over
        instead of read again. Price: 0.15 s and 100 MB for 128,000 tokens, 0.02 s with a `like`
        that fits or when the file was read before; seconds and 400 MB where transformers has to be
        asked. Raises CompatibilityError when no tokenizer can be loaded.
        """
        try:
            return _read_light(folder, like.map if like else None)
        except _UnusualError:
            return _read_with_transformers(folder)

    @property
    def ids(self) -> Mapping[str, int]:
        return self.map.ids

    @property
    def map_hash(self) -> str:
        return self.map.hash

    @property
    def special_ids(self) -> Mapping[int, str]:
        """Added tokens that are marked special, by id."""
        return {self.ids[token]: token for token, special in self.map.added.items() if special}

    @property
    def eos_id(self) -> int | None:
        return None if self.eos_token is None else self.ids.get(self.eos_token)

    def same_ids(self, other: TokenSide) -> bool:
        """Whether every id means the same token in both."""
        known = self.map.sha256 is not None and self.map.sha256 == other.map.sha256
        return known or self.map is other.map or self.ids == other.ids

    def get_vocab(self) -> dict[str, int]:
        """The map under the name that transformers gives it (see `tokenizer.Vocabulary`)."""
        return dict(self.ids)


def _read_light(folder: Path, like: TokenMap | None) -> TokenSide:
    config = _json_file(folder / TOKENIZER_CONFIG_FILE)
    defaults = _defaults(folder, config)
    raw = _bytes(folder / TOKENIZER_FILE)
    digest = hashlib.sha256(raw).hexdigest()
    token_map = like if like is not None and like.sha256 == digest else _map_of(raw, digest)
    named = _named(folder, config, token_map)
    if not all(token_map.added.get(token) for token in [*defaults, *named.values()]):
        raise _UnusualError  # transformers would add it to the map, or mark it special
    if _EOS not in named:
        raise _UnusualError  # the class may have a default
    return TokenSide(map=token_map, eos_token=named[_EOS], has_template=_has_template(folder))


def _defaults(folder: Path, config: JsonObject) -> tuple[str, ...]:
    """Tokens that the tokenizer's class may add by itself."""
    declared = str(config.get("tokenizer_class"))
    model = _json_file(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    model_type = str(model.get("model_type", "llama"))
    unusual = {"auto_map", "fast_tokenizer_files"} & config.keys()
    if unusual or declared not in _CLASSES or model_type not in _MODEL_TYPES:
        raise _UnusualError
    return _CLASSES[declared] + _MODEL_TYPES[model_type]


def _map_of(raw: bytes, digest: str) -> TokenMap:
    """The map of a tokenizer.json, as far as may be by what it was before: models of one family
    have the same file, and most merges ask for no more than its added tokens."""
    worth_it = len(raw) >= _WORTH_KEEPING
    name = f"tokens-{digest[:32]}-{_source_hash()[:16]}"
    known = kept.recall(name, kept.user_folder()) if worth_it else None
    if known is not None:
        size, tokens = cast("tuple[int, list[tuple[str, int, bool]]]", json.loads(known))
        ids: Mapping[str, int] = _Ids(raw, {token: number for token, number, _ in tokens}, size)
        return TokenMap(ids, {token: special for token, _, special in tokens}, digest)
    ids, added = _parsed_tokens(raw)
    if worth_it:
        tokens = [(token, ids[token], special) for token, special in added.items()]
        kept.keep(name, json.dumps([len(ids), tokens]).encode(), kept.user_folder())
    return TokenMap(ids, added, digest)


@cache
def _source_hash() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _parsed_tokens(raw: bytes) -> tuple[Mapping[str, int], Mapping[str, bool]]:
    """`ids` and `added` of a tokenizer.json whose added tokens follow its vocabulary without gaps
    (the tokenizers library numbers them so whatever the file says)."""
    fields = _json(raw)
    model, padding = fields.get("model"), fields.get("padding")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(vocab, dict):
        raise _UnusualError
    ids = cast("dict[str, int]", vocab)
    if padding is not None or set(ids.values()) != set(range(len(ids))):
        raise _UnusualError
    added: dict[str, bool] = {}
    for token_id, token, special in _added(fields.get("added_tokens")):
        if ids.setdefault(token, len(ids)) != token_id or token in added:
            raise _UnusualError
        added[token] = special
    return ids, added


def _added(entries: JsonValue) -> Iterable[tuple[int, str, bool]]:
    if not isinstance(entries, list):
        raise _UnusualError
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        token_id, token, special = (fields.get(key) for key in ("id", "content", "special"))
        if not isinstance(token_id, int) or not isinstance(token, str) or not token:
            raise _UnusualError
        yield token_id, token, special is True


def _named(folder: Path, config: JsonObject, token_map: TokenMap) -> dict[str, str]:
    """Every token that the files name, by role; raises when they number tokens differently."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        _require_same_added(decoder, token_map)
        return _names_in(config)
    legacy: JsonObject = {}  # files that transformers reads only without a decoder
    if (folder / ROLES_FILE).is_file():
        legacy = _json_file(folder / ROLES_FILE)
    if (folder / "added_tokens.json").is_file():
        for token, token_id in _json_file(folder / "added_tokens.json").items():
            if token not in token_map.added or token_map.ids[token] != token_id:
                raise _UnusualError
    return {**_names_in(config), **_names_in(legacy)}


def _require_same_added(decoder: JsonValue, token_map: TokenMap) -> None:
    if not isinstance(decoder, dict):
        raise _UnusualError
    entries: list[JsonValue] = [
        {**entry, "id": int(number)} for number, entry in decoder.items() if isinstance(entry, dict)
    ]
    stated = {(token_id, token, special) for token_id, token, special in _added(entries)}
    known = {(token_map.ids[token], token, special) for token, special in token_map.added.items()}
    if len(entries) != len(decoder) or stated != known:
        raise _UnusualError


def _names_in(config: JsonObject) -> dict[str, str]:
    """Role to token; lists of further tokens get numbered roles."""
    names: dict[str, str] = {}
    for key, value in config.items():
        if key in ("extra_special_tokens", "additional_special_tokens"):
            values = list(value.values()) if isinstance(value, dict) else value
            for number, item in enumerate(values if isinstance(values, list) else []):
                names[f"{key}.{number}"] = _content(item)
        elif key.endswith("_token") and value is not None and not isinstance(value, bool):
            names[key] = _content(value)
    return names


def _content(value: JsonValue) -> str:
    """A token as a string, or as transformers writes an added token."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise _UnusualError
    return text


def _has_template(folder: Path) -> bool:
    return any(read_templates(folder).values())


def _read_with_transformers(folder: Path) -> TokenSide:
    from cpt_residual.modeling.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    eos: object = tokenizer.eos_token
    return TokenSide(
        map=TokenMap(
            ids=tokenizer.get_vocab(),
            added={token.content: token.special for token in decoder.values()},
        ),
        eos_token=eos if isinstance(eos, str) else None,
        has_template=bool(cast("object", tokenizer.chat_template)),
    )


def _json_file(path: Path) -> JsonObject:
    return _json(_bytes(path))


def _json(raw: bytes) -> JsonObject:
    try:
        value = cast("JsonValue", json.loads(raw))
    except ValueError as error:
        raise _UnusualError from error
    if not isinstance(value, dict):
        raise _UnusualError
    return value


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnusualError from error
