"""The small files of a model directory: their names, reading and copying them, where texts end.

Imports no torch, so that plans can read a model's headers.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from cpt_residual.core.files import text_of_name, write_json_atomic
from cpt_residual.errors import ArtifactError, CompatibilityError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"  # of older versions of transformers
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
CHAT_FOLDER = "chat"  # of a base model that carries its family's chat side
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
_PROCESSOR_PATTERN = "*processor_config.json"
_CHAT_PATTERNS = (*TEMPLATE_FILES, NAMED_TEMPLATES, "*.jinja", _PROCESSOR_PATTERN)
_TOKENIZER_PATTERNS = (
    *("tokenizer*.json", "tokenizer.model*", ROLES_FILE, "added_tokens.json", "tekken.json"),
    *("vocab*.json", "vocab*.txt", "vocab.bpe", "merges*.txt", "encoder.json", "normalizer.json"),
    *("*.spm", "spiece*.model", "sentencepiece*.model", "*.bpe.model", "*.tiktoken"),
    *("tiktoken.model", "bpe.codes"),
)
"""Names of the tokenizer and processor side, in any layout of transformers."""
_OTHER_PATTERNS = (
    *(CONFIG_FILE, GENERATION_FILE, "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth"),
    *("*.ckpt", "*.h5", "*.msgpack", "*.onnx*", "*.gguf", "README*", "LICENSE*", "NOTICE*"),
    *("*.md", "*.pdf", "*.png", "*.jpg", "*.svg", "USE_POLICY*", ".*", "_*", CHAT_FOLDER),
    *("merge.json", "origin.json", "trainer_state.json", "adapter_config.json"),
)
"""Weights, documents and records, which no output takes over and nobody misses."""
_CONFIG_PATTERN = "*config.json"
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_CODE_FIELDS = ("auto_map", "custom_pipelines")
_MAX_NAMED = 200  # characters of an auto_map in a message


def carried_files(folder: Path, *, vocabulary: bool = True) -> list[str]:
    """Names of the files of the tokenizer and processor side in `folder`: vocabulary, chat
    templates, named ones too, and processor configs. `vocabulary` False: those that do not decide
    which id is which token."""
    patterns = (*_CHAT_PATTERNS, *(_TOKENIZER_PATTERNS if vocabulary else ()))
    return [name for name in _names_in(folder) if _matches(name, patterns)]


def is_chat_file(name: str) -> bool:
    """Whether a file of this name is a chat template or a processor config."""
    return _matches(name, _CHAT_PATTERNS)


def processor_files(folder: Path) -> list[str]:
    """Names of the files that say how images or sounds become inputs."""
    return [name for name in _names_in(folder) if _matches(name, (_PROCESSOR_PATTERN,))]


def left_out_files(folder: Path) -> list[str]:
    """What a model directory holds besides weights, documents and the files that are carried:
    names of files, and of folders with a slash."""
    known = (*_CHAT_PATTERNS, *_TOKENIZER_PATTERNS, *_OTHER_PATTERNS)
    names = [name for name in _names_in(folder) if not _matches(name, known)]
    named_folder = NAMED_TEMPLATES.partition("/")[0]
    names += [
        f"{path.name}/"
        for path in folder.iterdir()
        if path.is_dir() and path.name != named_folder and not _matches(path.name, _OTHER_PATTERNS)
    ]
    return sorted(map(text_of_name, names))


def left_out_of(folder: Path) -> list[str]:
    """`left_out_files`, and the fields that `forget_code` takes out of the configs."""
    fields = [line for line in code_named_in(folder) if not line.endswith(": code")]
    return left_out_files(folder) + fields


def carry_tokenizer(source: Path, out: Path, *, vocabulary: bool = True) -> list[str]:
    """Copies `carried_files` of `source`, and returns their names."""
    return copy_files(source, out, carried_files(source, vocabulary=vocabulary))


def _names_in(folder: Path) -> list[str]:
    """Files of a directory and of its folder of named templates."""
    places = [*folder.iterdir(), *folder.glob(NAMED_TEMPLATES.replace("*.jinja", "*"))]
    return sorted(str(path.relative_to(folder)) for path in places if path.is_file())


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def copy_files(source: Path, out: Path, names: Sequence[str]) -> list[str]:
    """Copy those of `names` that `source` has; returns their names. Raises ArtifactError for links
    that leave the directory (those of a hub snapshot, into the blobs beside it, are fine)."""
    found = [name for name in names if (source / name).is_file()]
    outside = [name for name in found if leaves_folder(source / name, root=source)]
    if outside:
        raise ArtifactError(
            f"{source} has links that leave the directory",
            problems=[f"{name} -> {os.path.realpath(source / name)}" for name in outside],
            remedy="Nothing was copied: what they point to may not belong to the model. Replace "
            "them by the files.",
        )
    for name in found:
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / name)
    return found


def forget_code(folder: Path) -> None:
    """Removes from the configs in `folder` what makes transformers look for code to run, there or
    on the hub (auto_map), so that no output asks its users to trust any. Other files keep their
    bytes."""
    for path in sorted(folder.glob(_CONFIG_PATTERN)):
        fields = read_json_object(path, "output")
        kept = _without_code(fields)
        if kept != fields:
            write_json_atomic(path, kept)


def _without_code(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in _CODE_FIELDS
    }


def code_named_in(folder: Path) -> list[str]:
    """One line for each class that a config in `folder` wants to take from code shipped with the
    model, and for each file of code that lies there. A config that cannot be read names none."""
    lines: list[str] = []
    for path in sorted(folder.glob(_CONFIG_PATTERN)):
        try:
            fields = json_object(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        for field, value in _code_fields(fields):
            named = json.dumps(value, ensure_ascii=False, sort_keys=True)
            lines.append(f"{path.name}: {field} {named[:_MAX_NAMED]}")
    code = [*folder.glob("*.py"), *folder.glob("*/*.py")]
    return lines + [f"{path.relative_to(folder)}: code" for path in sorted(code)]


def _code_fields(fields: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for field, value in fields.items():
        if field in _CODE_FIELDS:
            yield field, value
        elif isinstance(value, dict):
            yield from _code_fields(value)


def refuse_code(folder: Path, error: BaseException) -> None:
    """Raises CompatibilityError where transformers failed with `error` because it may not run the
    code that the model in `folder` ships."""
    code = code_named_in(folder)
    if code and "trust_remote_code" in str(error):
        raise CompatibilityError(
            f"{folder} can be loaded only by running the code that it ships",
            problems=code,
            remedy="Code of a model is never run, and no option allows it. Use a model of an "
            "architecture that the installed transformers knows, or a newer transformers.",
        ) from error


def read_json_object(path: Path, role: str) -> dict[str, JsonValue]:
    """A JSON file that must hold an object without repeated keys; `role` names its model."""
    try:
        return json_object(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{role}: {path} is missing", remedy="A model directory needs it; save the model again."
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{role}: {path} cannot be read: {error.strerror or error}",
            remedy="See to the file and its rights, then run it again.",
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{role}: {path} is not valid JSON: {error}",
            remedy="Download or save the model again.",
        ) from error


def json_object(raw: bytes) -> dict[str, JsonValue]:
    """The object that `raw` holds. Raises ValueError for anything else: repeated keys, nesting that
    Python cannot follow, and text that UTF-8 cannot say, neither raw nor escaped."""
    try:
        text = raw.decode("utf-8")
        value = cast(
            "JsonValue",
            json.loads(
                text,
                object_pairs_hook=_without_repeats,
                parse_constant=_number,
                parse_float=_number,
            ),
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _HALF_CHARACTER.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone half of one, escaped
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


def leaves_folder(path: Path, *, root: Path | None = None) -> bool:
    """Whether `path`, below the model directory `root` (default: the one it lies in), is a link to
    something outside it, the blobs beside a snapshot of the hub's cache excepted."""
    folder, real = Path(os.path.realpath(root or path.parent)), Path(os.path.realpath(path))
    if not path.is_symlink() and real.is_relative_to(folder):
        return False
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return not real.is_relative_to(folder) and not real.is_relative_to(blobs)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number of JSON")
    return value


def _without_repeats(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys: {', '.join(repeated)}")
    return dict(pairs)
