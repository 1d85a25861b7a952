"""One JSON line: what is accepted, and what each mistake is called."""

from __future__ import annotations

import pytest

from cpt_residual.data.documents.parsing import (
    document_line,
    parse_messages,
    parse_object,
    parse_text,
    text_of,
)
from cpt_residual.data.documents.problems import BadDocumentError

PLACE = "a.jsonl:3"


def test_text_comes_back_as_written() -> None:
    text = 'naïve 日本 "quoted"\nsecond line'
    assert parse_text(document_line(text), PLACE) == text


def test_windows_line_ends_and_other_fields_are_harmless() -> None:
    row = parse_object(b'{"id": 1, "body": "hi"}\r\n', PLACE, offset=0)
    assert text_of(row, PLACE, text_field="body") == "hi"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", "a.jsonl:3: empty line"),
        (b'{"text": "x"', "a.jsonl:3: not JSON: Expecting ',' delimiter at column 13"),
        (
            b'{"text": "a\tb"}',
            "a.jsonl:3: not JSON: Invalid control character at column 12",
        ),
        (b'{"text": "x', "a.jsonl:3: not JSON: Unterminated string starting at column 10"),
        (
            b'{"text": "a", "id": 1, "text": "b"}',
            "a.jsonl:3: the key 'text' stands in one object twice",
        ),
        (
            b'{"text": "a", "meta": {"k": 1, "k": 1}}',
            "a.jsonl:3: the key 'k' stands in one object twice",
        ),
        (
            b'{"text": "a", "id": ' + b"7" * 4301 + b"}",
            "a.jsonl:3: a number with more digits than are read",
        ),
        (b'["x"]', "a.jsonl:3: the line is a list, not a JSON object"),
        (b"3", "a.jsonl:3: the line is a number, not a JSON object"),
        (b'{"text": 5}', "a.jsonl:3: field 'text' is a number, not a string"),
        (b'{"text": null}', "a.jsonl:3: field 'text' is null, not a string"),
        (b'{"text": ["x"]}', "a.jsonl:3: field 'text' is a list, not a string"),
        (b'{"text": ""}', "a.jsonl:3: field 'text' is empty"),
        (b'{"text": " \\n"}', "a.jsonl:3: field 'text' is empty"),
        (
            b'{"text": "ab\\ud800"}',
            "a.jsonl:3: field 'text' holds half a surrogate pair at character 2",
        ),
        (
            b'{"txt": "x", "url": "y"}',
            "a.jsonl:3: no field 'text'; fields present: 'txt', 'url'. Did you mean 'txt'?",
        ),
        (b"{}", "a.jsonl:3: no field 'text'; fields present: none."),
        (
            b'{"text": "caf\xe9"}',
            "a.jsonl:3: not UTF-8: byte 0xe9 at byte offset 113 of the file",
        ),
    ],
)
def test_bad_text_lines(line: bytes, message: str) -> None:
    with pytest.raises(BadDocumentError) as caught:
        text_of(parse_object(line, PLACE, offset=100), PLACE, text_field="text")
    assert str(caught.value) == message


def test_dialogues_come_back_as_written() -> None:
    line = (
        b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
    )
    assert parse_messages(line, PLACE) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"message": []}',
            "a.jsonl:3: no field 'messages'; fields present: 'message'. Did you mean 'message'?",
        ),
        (b'{"messages": []}', "a.jsonl:3: field 'messages' is not a list of turns"),
        (
            b'{"messages": ["hi"]}',
            "a.jsonl:3: messages[0] is a string, not an object with 'role' and 'content'",
        ),
        (
            b'{"messages": [{"role": "user"}]}',
            "a.jsonl:3: messages[0] has the fields 'role', not 'content', 'role'",
        ),
        (
            b'{"messages": [{"role": "user", "content": 3}]}',
            "a.jsonl:3: messages[0].content is a number, not a string",
        ),
        (
            b'{"messages": [{"role": "user", "content": "q"}]}',
            "a.jsonl:3: no turn has the role 'assistant', so there is no loss",
        ),
    ],
)
def test_bad_dialogues(line: bytes, message: str) -> None:
    with pytest.raises(BadDocumentError) as caught:
        parse_messages(line, PLACE)
    assert str(caught.value) == message
