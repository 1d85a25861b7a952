"""Whether the small files of a model directory let it chat and stop, before any work with it.

Imports no torch; transformers, for one question through each template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from cpt_residual.errors import CompatibilityError, CptResidualError
from cpt_residual.modeling.side_files import (
    CHAT_FOLDER,
    GENERATION_FILE,
    ROLES_FILE,
    TOKENIZER_CONFIG_FILE,
    eos_ids_of,
    read_json_object,
)
from cpt_residual.modeling.templates import DEFAULT, ChatTemplate, read_templates

_COUNTS = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k"),
    *("num_return_sequences", "no_repeat_ngram_size", "bos_token_id", "pad_token_id"),
)
_NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "max_time"),
    *("repetition_penalty", "length_penalty", "guidance_scale", "penalty_alpha"),
)
_FLAGS = ("do_sample", "use_cache", "renormalize_logits", "output_scores", "output_logits")


def require_chat_side(folder: Path, role: str) -> None:
    """CompatibilityError that lists what `check_chat_side` finds in the folder of `role`."""
    problems = check_chat_side(folder)
    if problems:
        raise CompatibilityError(
            f"{role}: the chat side of {folder} cannot be used",
            problems=problems,
            remedy="A model with it could not be asked, or would not stop. Repair these files, or "
            "take them from the release.",
        )


def check_chat_side(folder: Path) -> list[str]:
    """Problems of a model directory's chat templates (each renders one question), EOS token ids
    and generation config, one line each; none: it can be asked, and its files make sense.

    A template that asks for today's date is no problem: it gets `templates.TEMPLATE_DATE`."""
    problems = _lines_of(lambda: _template_problems(folder))
    problems += _lines_of(lambda: _end_problems(folder))
    path = folder / GENERATION_FILE
    if path.is_file():
        problems += _lines_of(lambda: generation_problems(read_json_object(path, "generation")))
    return problems


def generation_problems(fields: Mapping[str, JsonValue]) -> list[str]:
    """Values of a generation config that transformers would stumble over when it generates."""
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        **dict.fromkeys(_COUNTS, ((int,), "a whole number")),
        **dict.fromkeys(_NUMBERS, ((int, float), "a number")),
        **dict.fromkeys(_FLAGS, ((bool,), "true or false")),
    }
    problems = [
        f"{GENERATION_FILE}: {field} is {fields[field]!r}, not {what}"
        for field, (types, what) in kinds.items()
        if fields.get(field) is not None and type(fields[field]) not in types
    ]
    strings = fields.get("stop_strings")
    listed = strings if isinstance(strings, list) else [strings]
    if strings is not None and not all(isinstance(each, str) and each for each in listed):
        problems.append(f"{GENERATION_FILE}: stop_strings is {strings!r}, not text or a list of it")
    return problems


def _end_problems(folder: Path) -> list[str]:
    if eos_ids_of(folder) or "eos_token" in _named_tokens(folder):
        return []
    return ["neither its configs nor its tokenizer name what ends a text"]


def _template_problems(folder: Path) -> list[str]:
    owner, templates = folder, read_templates(folder)
    if not templates and (folder / CHAT_FOLDER).is_dir():
        owner = folder / CHAT_FOLDER
        templates = read_templates(owner)
    if not templates:
        return ["no chat template"]
    problems = [] if DEFAULT in templates else [f"no default among its templates {[*templates]}"]
    tokens = _named_tokens(owner)
    for name, text in templates.items():
        try:
            if name == DEFAULT:
                ChatTemplate.of(text, tokens)
            else:  # it may want tools or documents: only its grammar is checked
                ChatTemplate.unproven(text, tokens).render([], add_generation_prompt=False)
        except CompatibilityError as error:
            problems += [f"chat template '{name}': {line}" for line in error.problems]
    return problems


def _named_tokens(folder: Path) -> dict[str, str]:
    """Tokens by role, as a template is given them."""
    named: dict[str, str] = {}
    for name in (ROLES_FILE, TOKENIZER_CONFIG_FILE):
        path = folder / name
        fields = read_json_object(path, "tokenizer") if path.is_file() else {}
        for role, value in fields.items():
            token = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(token, str):
                named[role] = token
    return named


def _lines_of(check: Callable[[], list[str]]) -> list[str]:
    """The problems that a check returns, or those of the error that it raises."""
    try:
        return check()
    except CptResidualError as error:
        return [" ".join([error.what, *error.problems])]
