"""Weights of a kind that is not read: quantised, double precision, integers. What they are and what
to do about it, from config.json and dtypes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.weights.io.shard_header import CONSTANT_SIZES, IN_HEADER, read_header

_SECTIONS = ("quantization_config", "compression_config")
_NUM_SHOWN = 3
_TENSOR_ENDS = (  # of names that only one way of quantising has
    (".SCB", "bitsandbytes int8"),
    (".absmax", "bitsandbytes 4-bit"),
    (".quant_map", "bitsandbytes 4-bit"),
    ("_blocks", "mxfp4"),
    (".weight_packed", "compressed-tensors"),
    (".g_idx", "gptq"),
    (".qweight", "gptq or awq"),
)
_DTYPES = re.compile(r"BOOL|C64|F4|F6_E\dM\d|F64|F8_\w+|[IU](?:8|16|32|64)")
_MIXED = "quantised to integers"
_LOADING = (
    'AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="bfloat16"{option}){then}'
    ".save_pretrained(NEW_DIRECTORY)"
)


@dataclass(frozen=True)
class StoredDtype:
    """A tensor's name and the dtype that its header states."""

    name: str
    dtype: str


def refuse_foreign_weights(
    role: str,
    path: Path,
    config: Mapping[str, JsonValue],
    tensors: Sequence[StoredDtype],
    problems: Sequence[str] = (),
) -> None:
    """CompatibilityError that says what the weights in `path` are, where any `tensors` (those whose
    dtype is none of weights) are given: quantised, or numbers of another kind. `problems`: what
    else is wrong with them."""
    if not tensors:
        return
    dtypes = sorted({tensor.dtype for tensor in tensors})
    method = _method(config, tensors)
    shown = [f"{tensor.name}: {tensor.dtype}" for tensor in tensors[:_NUM_SHOWN]]
    if len(tensors) > _NUM_SHOWN:
        shown.append(f"and {len(tensors) - _NUM_SHOWN:,} more ({', '.join(dtypes)})")
    shown += problems
    if method:
        raise CompatibilityError(
            f"{role}: the weights in {path} are quantised ({method})",
            problems=shown,
            remedy=f"Dequantise first, e.g. {_dequantising(method)}, or take the release in bf16.",
        )
    if dtypes == ["F64"]:
        raise CompatibilityError(
            f"{role}: the weights in {path} are in double precision (F64)",
            problems=shown,
            remedy="Cast them first, e.g. " + _loading().replace("bfloat16", "float32") + ".",
        )
    raise CompatibilityError(
        f"{role}: {path} holds tensors of {', '.join(dtypes)}, which are no weights",
        problems=shown,
        remedy="Weights are BF16, F16 or F32. Save the model again without these tensors, e.g. "
        f"{_loading()}.",
    )


def refuse_foreign_files(
    role: str,
    path: Path,
    config: Mapping[str, JsonValue],
    files: Iterable[Path],
    problems: Sequence[str],
) -> None:
    """The same for files whose headers have these `problems`. Constants that old files keep beside
    the weights count where something says quantised."""
    tensors = [tensor for file in files for tensor in _foreign_tensors(file)]
    if not _method(config, tensors):
        tensors = [tensor for tensor in tensors if tensor.dtype not in CONSTANT_SIZES]
    names = {tensor.name for tensor in tensors}
    others = [
        line
        for line in problems
        if line.partition(": dtype ")[0] not in names and not line.endswith(IN_HEADER)
    ]
    refuse_foreign_weights(role, path, config, tensors, others)


def refuse_quantised(
    role: str, path: Path, config: Mapping[str, JsonValue], constants: Sequence[StoredDtype]
) -> None:
    """CompatibilityError for weights that are quantised although every dtype can be read."""
    if _method(config, constants):
        refuse_foreign_weights(role, path, config, constants)


def require_plain_config(role: str, path: Path, config: Mapping[str, JsonValue]) -> None:
    """CompatibilityError for a config.json that says quantised beside weights that are not:
    transformers would quantise them, or read them as what they are not."""
    sections = _sections(config)
    if not sections:
        return
    where, section = next(iter(sections.items()))
    raise CompatibilityError(
        f"{role}: config.json in {path} says quantised ({stated_method(config)}), its weights are "
        "not",
        problems=[f"{where}: {str(section)[:120]}"],
        remedy=f"Loading would quantise them or fail. Remove {where} if these are the "
        "dequantised weights, or give the release in bf16.",
    )


def _foreign_tensors(file: Path) -> list[StoredDtype]:
    """The tensors of a file whose dtype is known and not read; none of a broken file."""
    try:
        _, header, _ = read_header(file)
    except (ArtifactError, OSError, ValueError):
        return []
    dtypes = {
        name: fields.get("dtype") for name, fields in header.items() if isinstance(fields, dict)
    }
    return [
        StoredDtype(name, dtype)
        for name, dtype in dtypes.items()
        if isinstance(dtype, str) and _DTYPES.fullmatch(dtype)
    ]


def _method(config: Mapping[str, JsonValue], tensors: Sequence[StoredDtype]) -> str:
    eights = sorted({each.dtype for each in tensors if each.dtype.startswith("F8")})
    stated = stated_method(config)
    if eights and stated in ("", "fp8"):
        return f"fp8, {', '.join(eights)}"
    if stated:
        return stated
    for end, method in _TENSOR_ENDS:
        if any(tensor.name.endswith(end) for tensor in tensors):
            return method
    return _MIXED if any(tensor.dtype in ("I8", "F4") for tensor in tensors) else ""


def stated_method(config: Mapping[str, JsonValue]) -> str:
    """The method of quantising that config.json states, with its number of bits where it does;
    empty where it states none."""
    for section in _sections(config).values():
        if not isinstance(section, dict):
            return "unknown method"
        bits = [4] if section.get("load_in_4bit") is True else []
        bits += [8] if section.get("load_in_8bit") is True else []
        found = section.get("bits", bits[0] if bits else None)
        method = str(section.get("quant_method") or "unknown method")[:40]
        return f"{method} {found}-bit" if type(found) is int else method
    return ""


def _sections(config: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """What config.json says of quantising, by path: of the model, then of the models in it."""
    found = {f"{prefix}{name}": config[name] for name in _SECTIONS if config.get(name)}
    for name, nested in config.items():
        if name.endswith("_config") and name not in _SECTIONS and isinstance(nested, dict):
            found |= _sections(nested, f"{prefix}{name}.")
    return found


def _dequantising(method: str) -> str:
    if method.startswith("fp8"):
        return _loading(", quantization_config=FineGrainedFP8Config(dequantize=True)")
    if method.startswith("mxfp4"):
        return _loading(", quantization_config=Mxfp4Config(dequantize=True)")
    return _loading("", ".dequantize()")


def _loading(option: str = "", then: str = "") -> str:
    return _LOADING.format(option=option, then=then)
