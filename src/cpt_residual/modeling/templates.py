"""The chat templates of a model directory: found by name, given a fixed date, rendered.

A template is a small program that comes with a model: it may raise anything, ask for today's date,
or want its messages in another shape. Here it becomes text or a CompatibilityError. Imports no
torch; transformers (1.2 s) when the first dialogue is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.side_files import (
    NAMED_TEMPLATES,
    TEMPLATE_FILES,
    TOKENIZER_CONFIG_FILE,
    read_json_object,
)

Messages = Sequence[Mapping[str, str]]

DEFAULT = "default"
TEMPLATE_DATE = date(2024, 7, 26)
"""What templates that ask for today's date are told, so that the same data gives the same tokens on
any day. It is the date that Llama 3.2's template falls back to."""

_CODES = "aAbBcdDeFgGhHIjmMnpSTuUVwWxXyYzZ"
_HELLO = "Hello"
_HELP = "You answer questions."
_MAX_MESSAGE = 300


def read_templates(folder: Path) -> dict[str, str]:
    """The templates of the tokenizer in `folder` by name, as transformers finds them: files, if
    there is any, else `chat_template` of tokenizer_config.json. A single one is the default.

    Raises ArtifactError for files that hold none."""
    paths = {path.stem: path for path in sorted(folder.glob(NAMED_TEMPLATES)) if path.is_file()}
    if (folder / TEMPLATE_FILES[0]).is_file():
        paths[DEFAULT] = paths.get(DEFAULT, folder / TEMPLATE_FILES[0])
    if paths:
        return {name: _text(path) for name, path in paths.items()}
    path = folder / TOKENIZER_CONFIG_FILE
    if not path.is_file():
        return {}
    return _in_config(path, read_json_object(path, "tokenizer").get("chat_template"))


def _in_config(path: Path, value: JsonValue) -> dict[str, str]:
    if isinstance(value, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in value]
        value = {str(entry.get("name")): entry.get("template") for entry in entries}
    elif not isinstance(value, dict):
        value = {} if value in (None, "") else {DEFAULT: value}
    found = {name: text for name, text in value.items() if isinstance(text, str)}
    if len(found) != len(value):
        raise ArtifactError(
            f"{path}: chat_template is neither text nor a list of named templates",
            problems=[f"{name}: not text" for name in value if name not in found],
            remedy="Give it the template of the release.",
        )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            remedy="Download the template again.",
        ) from error


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has been shown to render what a user says (see `of`).

    source: its text, with a fixed date where it asks for one. has_date: it asks for one. in_parts:
    it wants the content of a message as a list of parts, each with its type. needs_system: it
    refuses a dialogue without a system turn.
    """

    source: str
    special_tokens: Mapping[str, str]
    has_date: bool
    in_parts: bool
    needs_system: bool = False

    @classmethod
    def unproven(
        cls,
        text: str,
        special_tokens: Mapping[str, str],
        *,
        in_parts: bool = False,
        needs_system: bool = False,
    ) -> ChatTemplate:
        """A template that nothing has been rendered with."""
        has_date = "strftime_now" in text
        source = _DATE_MACRO + text if has_date else text
        return cls(source, special_tokens, has_date, in_parts, needs_system)

    @classmethod
    def of(cls, text: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """Renders one question, behind a system turn where the template demands one.
        `special_tokens`: by role (`eos_token`), as transformers names them. Raises
        CompatibilityError for a template that fails, or leaves the question out."""
        problems: list[str] = []
        for needs_system, in_parts in product((False, True), repeat=2):
            template = cls.unproven(
                text, special_tokens, in_parts=in_parts, needs_system=needs_system
            )
            try:
                prompt = template.question()
            except CompatibilityError as error:
                problems += [line for line in error.problems if line not in problems]
                continue
            if _HELLO.casefold() in prompt.casefold():
                return template
            line = f"the question {_HELLO!r} becomes {prompt[:60]!r}"
            problems += [line] if line not in problems else []
        raise CompatibilityError(
            "the chat template refuses a dialogue, or loses what the user says",
            problems=problems,
            remedy="It was asked one question, as text and in parts, without and with a system "
            "turn. Repair it, or take the template of a release.",
        )

    def question(self) -> str:
        """The prompt of one short question, in a dialogue that the template accepts."""
        turns = [("system", _HELP)] if self.needs_system else []
        messages = [{"role": role, "content": text} for role, text in [*turns, ("user", _HELLO)]]
        return self.render([messages], add_generation_prompt=True)[0]

    def render(self, documents: Sequence[Messages], *, add_generation_prompt: bool) -> list[str]:
        """The text of each dialogue, as `apply_chat_template` of transformers renders it (ten times
        as fast); for no dialogue, the template is compiled. Raises CompatibilityError."""
        from transformers.utils import chat_template_utils

        # Annotated as `str` in transformers, but it returns the texts and the answers' indices.
        adapter = cast("Any", chat_template_utils)
        render = cast("Callable[..., tuple[list[str], object]]", adapter.render_jinja_template)
        try:
            rendered = render(
                conversations=[self.shaped(messages) for messages in documents],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except Exception as error:  # a program of somebody else's: it may raise anything
            raise refused(error) from error
        return rendered[0]

    def shaped(self, messages: Messages) -> list[dict[str, JsonValue]]:
        """A dialogue in the form that the template wants."""
        return [
            {
                key: [{"type": "text", "text": value}]
                if self.in_parts and key == "content"
                else value
                for key, value in message.items()
            }
            for message in messages
        ]


def refused(error: Exception) -> CompatibilityError:
    """What a template raised, as an error of the user's to repair."""
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if isinstance(line, int) else ""
    text = " ".join(str(error).split())[:_MAX_MESSAGE]
    return CompatibilityError(
        "the chat template refuses a dialogue",
        problems=[f"{type(error).__name__}: {text}{where}"],
        remedy="Check the roles and their order, or use another template.",
    )


def _date_macro() -> str:
    """`strftime_now` of TEMPLATE_DATE, as a macro that hides the function of that name. It ends
    with the one line feed that templates drop behind a block."""
    moment = TEMPLATE_DATE.strftime
    filters = [f"replace({'%' + code!r}, {moment('%' + code)!r})" for code in _CODES]
    filters += [f"replace({'%-' + code!r}, {_bare(moment('%' + code))!r})" for code in "dmHIMSj"]
    filters += ["replace('%f', '000000')", "replace('%%', '%')"]
    body = " | ".join(["format", *filters])
    return "{% macro strftime_now(format) %}{{ " + body + " }}{% endmacro %}\n"


def _bare(digits: str) -> str:
    return digits.lstrip("0") or "0"


_DATE_MACRO = _date_macro()
