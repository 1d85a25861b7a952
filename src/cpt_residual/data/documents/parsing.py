"""The document type, and strict parsing of one JSON line.

Corpus files are UTF-8 JSON lines: `{"text": str}` for text and
`{"messages": [{"role": str, "content": str}, ...]}` for chat. A line that is anything else is a
problem with file, line and field; nothing is skipped or fixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from cpt_residual.data.documents.problems import BadDocumentError
from cpt_residual.errors import did_you_mean

Message = Mapping[str, str]
"""One turn of a dialogue: exactly `role` and `content`."""

Messages = Sequence[Message]
"""One chat document: a dialogue with at least one answer of the assistant."""


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; of two values for one key Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return found


class _RepeatedKeyError(Exception):
    """Its text is the key."""


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def parse_text(line: bytes, place: str) -> str:
    """The text of one JSON line. `place` is `file:line`."""
    return text_of(parse_object(line, place, offset=0), place, text_field="text")


def text_of(record: Mapping[str, object], place: str, *, text_field: str) -> str:
    """The text of one record: a non-blank string that has a UTF-8 form."""
    return _string(field_of(record, place, text_field), f"{place}: field '{text_field}'")


def field_of(record: Mapping[str, object], place: str, name: str, *, role: str = "") -> object:
    """The value of field `name`. A name with dots that no field has is a path: `content.text` is
    the field `text` of the object `content`, and null where `content` is null."""
    value = _at_path(record, name)
    if value is _MISSING:
        present = _paths(record)
        raise BadDocumentError(
            f"{place}: no field '{name}'{role}; fields present: {_names(present)}."
            f"{did_you_mean(name, present) if present else ''}"
        )
    return value


_MISSING = object()
_LISTED_DEPTH = 3


def _at_path(value: object, name: str) -> object:
    if not isinstance(value, Mapping):
        return None if value is None else _MISSING
    fields = cast("Mapping[str, object]", value)
    if name in fields:
        return fields[name]
    first, dot, rest = name.partition(".")
    return _at_path(fields[first], rest) if dot and first in fields else _MISSING


def _paths(record: Mapping[str, object], depth: int = _LISTED_DEPTH) -> list[str]:
    """The names of all fields, those of objects as paths."""
    found: list[str] = []
    for name, value in record.items():
        nested = depth > 1 and isinstance(value, Mapping)
        below = _paths(cast("Mapping[str, object]", value), depth - 1) if nested else []
        found += [f"{name}.{each}" for each in below] or [name]
    return found


def parse_messages(line: bytes, place: str) -> Messages:
    """The dialogue of one JSON line; the roles and their order are the chat template's business."""
    record = parse_object(line, place, offset=0)
    if "messages" not in record:
        raise BadDocumentError(
            f"{place}: no field 'messages'; fields present: {_names(record)}."
            f"{did_you_mean('messages', record) if record else ''}"
        )
    value = record["messages"]
    if not isinstance(value, list) or not value:
        raise BadDocumentError(f"{place}: field 'messages' is not a list of turns")
    turns = cast("list[object]", value)
    messages = [_message(turn, f"{place}: messages[{i}]") for i, turn in enumerate(turns)]
    if all(message["role"] != "assistant" for message in messages):
        raise BadDocumentError(f"{place}: no turn has the role 'assistant', so there is no loss")
    return messages


def document_line(text: str) -> bytes:
    """The one line that a text document is written as in a corpus artifact."""
    return b'{"text": ' + _ENCODER.encode(text).encode() + b"}\n"  # json.dumps, ten times as fast


def chat_characters(messages: Messages) -> int:
    """Characters of all turns, without what the template adds."""
    return sum(len(message["content"]) for message in messages)


def _message(turn: object, place: str) -> Message:
    if not isinstance(turn, dict):
        raise BadDocumentError(f"{place} is {_kind(turn)}, not an object with 'role' and 'content'")
    fields = cast("dict[str, object]", turn)
    if set(fields) != {"role", "content"}:
        raise BadDocumentError(f"{place} has the fields {_names(fields)}, not 'content', 'role'")
    return {key: _string(fields[key], f"{place}.{key}") for key in ("role", "content")}


def parse_object(
    line: bytes, place: str, *, offset: int, where: str = "the file"
) -> Mapping[str, object]:
    """One JSON line as an object. `offset`: where the line begins in `where`."""
    if not line.strip():
        raise BadDocumentError(f"{place}: empty line")
    try:
        value: object = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadDocumentError(not_utf8(place, error, offset=offset, where=where)) from None
    except json.JSONDecodeError as error:
        what = error.msg.rstrip(": ").removesuffix(" at")  # "Invalid control character at"
        if error.doc.startswith("\ufeff"):
            what = "a byte order mark in the middle of the file"
        raise BadDocumentError(f"{place}: not JSON: {what} at column {error.colno}") from None
    except RecursionError:
        raise BadDocumentError(f"{place}: not JSON: nested too deeply") from None
    except _RepeatedKeyError as error:
        raise BadDocumentError(f"{place}: the key '{error}' stands in one object twice") from None
    except ValueError:  # sys.get_int_max_str_digits
        raise BadDocumentError(f"{place}: a number with more digits than are read") from None
    if not isinstance(value, dict):
        raise BadDocumentError(f"{place}: the line is {_kind(value)}, not a JSON object")
    return cast("dict[str, object]", value)


def not_utf8(place: str, error: UnicodeDecodeError, *, offset: int, where: str = "the file") -> str:
    """One line that names the first byte which is not UTF-8; `offset` is where the bytes begin."""
    byte = error.object[error.start]
    return f"{place}: not UTF-8: byte 0x{byte:02x} at byte offset {offset + error.start} of {where}"


def _string(value: object, place: str) -> str:
    if isinstance(value, bytes):  # columns of bytes, which hold text where nobody said that
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadDocumentError(
                f"{place} is not UTF-8: byte 0x{byte:02x} at byte {error.start} of the field"
            ) from None
    if not isinstance(value, str):
        raise BadDocumentError(f"{place} is {_kind(value)}, not a string")
    if not value.strip():
        raise BadDocumentError(f"{place} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadDocumentError(
            f"{place} holds half a surrogate pair at character {error.start}"
        ) from None
    return value


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def _kind(value: object) -> str:
    names = {
        "NoneType": "null",
        "dict": "an object",
        "list": "a list",
        "str": "a string",
        "bool": "a boolean",
    }
    return names.get(type(value).__name__, "a number")
