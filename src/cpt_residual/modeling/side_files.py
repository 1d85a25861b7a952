"""The small files of a model directory: their names, reading and copying them, where texts end.

Imports no torch, so that plans can read a model's headers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import ArtifactError, CompatibilityError

__all__ = [
    "CONFIG_FILE",
    "GENERATION_FILE",
    "NAMED_TEMPLATES",
    "ROLES_FILE",
    "TEMPLATE_FILES",
    "TOKENIZER_CONFIG_FILE",
    "TOKENIZER_FILE",
    "TOKENIZER_FILES",
    "code_named_in",
    "code_refusal",
    "copy_files",
    "eos_ids_of",
    "forget_code",
    "json_object",
    "leaves_folder",
    "read_json_object",
    "text_fields",
    "with_vocab_size",
]

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"  # of older versions of transformers
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    ROLES_FILE,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    *TEMPLATE_FILES,
)
"""Tokenizer and chat template, in any layout of transformers."""
_CODE_FIELDS = ("auto_map", "custom_pipelines")
_MAX_NAMED = 200  # characters of an auto_map in a message


def copy_files(source: Path, out: Path, names: Sequence[str]) -> list[str]:
    """Copy those of `names` that `source` has; returns their names. Raises ArtifactError for links
    that leave the directory (those of a hub snapshot, into the blobs beside it, are fine)."""
    found = [name for name in names if (source / name).is_file()]
    outside = [name for name in found if leaves_folder(source / name)]
    if outside:
        raise ArtifactError(
            f"{source} has links that leave the directory",
            problems=[f"{name} -> {os.path.realpath(source / name)}" for name in outside],
            remedy="Nothing was copied: what they point to may not belong to the model. Replace "
            "them by the files.",
        )
    for name in found:
        shutil.copyfile(source / name, out / name)
    return found


def forget_code(folder: Path) -> None:
    """Removes from the configs in `folder` what makes transformers look for code to run, there or
    on the hub (auto_map), so that no output asks its users to trust any. Other files keep their
    bytes."""
    for name in (CONFIG_FILE, GENERATION_FILE, TOKENIZER_CONFIG_FILE):
        fields = read_json_object(folder / name, "output") if (folder / name).is_file() else {}
        if any(field in fields for field in _CODE_FIELDS):
            kept = {key: value for key, value in fields.items() if key not in _CODE_FIELDS}
            write_json_atomic(folder / name, kept)


def code_named_in(folder: Path) -> list[str]:
    """One line for each class that a config in `folder` wants to take from code shipped with the
    model, and for each file of code that lies there. A config that cannot be read names none."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            fields = json_object(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        for field in _CODE_FIELDS:
            if field in fields:
                named = json.dumps(fields[field], ensure_ascii=False, sort_keys=True)
                lines.append(f"{path.name}: {field} {named[:_MAX_NAMED]}")
    code = [*folder.glob("*.py"), *folder.glob("*/*.py")]
    return lines + [f"{path.relative_to(folder)}: code" for path in sorted(code)]


def code_refusal(folder: Path, lines: Sequence[str]) -> CompatibilityError:
    """The refusal of a model that works with its own code alone. `lines`: `code_named_in`."""
    return CompatibilityError(
        f"{folder} can be loaded only by running the code that it ships",
        problems=lines,
        remedy="Code of a model is never run, and no option allows it. Use a model of an "
        "architecture that the installed transformers knows, or a newer transformers.",
    )


def read_json_object(path: Path, role: str) -> dict[str, JsonValue]:
    """A JSON file that must hold an object without repeated keys; `role` names its model."""
    try:
        return json_object(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{role}: {path} is missing", remedy="A model directory needs it; save the model again."
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{role}: {path} is not valid JSON: {error}",
            remedy="Download or save the model again.",
        ) from error


def json_object(raw: bytes) -> dict[str, JsonValue]:
    """The object that `raw` holds. Raises ValueError for anything else, and for repeated keys."""
    value = cast("JsonValue", json.loads(raw, object_pairs_hook=_without_repeats))
    if not isinstance(value, dict):
        raise ValueError("the top level is not an object")  # noqa: TRY004 - as a bad file is
    return value


def text_fields(config: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """What a config.json says of the text model: its own fields, or, of a model that reads images
    or sounds too, those that it nests."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def with_vocab_size(config: Mapping[str, JsonValue], size: int) -> dict[str, JsonValue]:
    """The config.json of a model with `size` rows, said where it said so before."""
    nested = config.get("text_config")
    if not isinstance(nested, dict):
        return {**config, "vocab_size": size}
    top: dict[str, JsonValue] = {"vocab_size": size} if "vocab_size" in config else {}
    return {**config, **top, "text_config": {**nested, "vocab_size": size}}


def eos_ids_of(folder: Path) -> list[int]:
    """Ids that end a text: those of generation_config.json, then of config.json, each once."""
    paths = [folder / name for name in (GENERATION_FILE, CONFIG_FILE)]
    return list(dict.fromkeys(id_ for path in paths if path.is_file() for id_ in _eos_ids(path)))


def _eos_ids(path: Path) -> list[int]:
    fields = read_json_object(path, "model")
    value = fields.get("eos_token_id")
    value = text_fields(fields).get("eos_token_id") if value is None else value
    values = value if isinstance(value, list) else [] if value is None else [value]
    ids = [item for item in values if type(item) is int and item >= 0]
    if len(ids) != len(values):
        raise ArtifactError(
            f"{path}: eos_token_id {value} is not an id or a list of ids",
            remedy="Give it the ids of the release, as numbers.",
        )
    return ids


def leaves_folder(path: Path) -> bool:
    """Whether `path` is a link to something outside its directory, the blobs beside a snapshot of
    the hub's cache excepted."""
    if not path.is_symlink():
        return False
    folder, real = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return not real.is_relative_to(folder) and not real.is_relative_to(blobs)


def _without_repeats(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys: {', '.join(repeated)}")
    return dict(pairs)
