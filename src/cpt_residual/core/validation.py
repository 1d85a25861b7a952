"""What is wrong with a file's fields, in lines for people: pydantic's findings without its web
links and dumps."""

from __future__ import annotations

from pydantic import ValidationError


def field_problems(error: ValidationError) -> list[str]:
    """`files.a.size: Input should be a valid integer`, a line for each finding."""
    return [
        ": ".join([*filter(None, [".".join(map(str, found["loc"]))]), found["msg"]])
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]
