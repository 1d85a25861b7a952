"""Identify a directory: residual, merged model, adapter or model; headers only, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from cpt_residual.base_model import Frozen
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import CONFIG_FILE, eos_ids_of, read_json_object
from cpt_residual.weights.interop.residuals_folder import (
    is_residuals_folder,
    read_residuals_folder,
)
from cpt_residual.weights.io.checkpoint import ADAPTER_CONFIG_FILE, is_adapter, open_checkpoint
from cpt_residual.weights.io.foreign_weights import stated_method
from cpt_residual.weights.io.model_ref import headers_hash
from cpt_residual.weights.io.shard_header import Shard, TensorEntry, read_shard
from cpt_residual.weights.merge.merge_record import (
    MERGE_FILE,
    MergeRecord,
    read_merge_record,
    read_origin,
)
from cpt_residual.weights.residual.residual_format import MANIFEST_FILE, open_residual

Kind = Literal["residual", "residuals package", "merged model", "model", "adapter"]


class ShardSize(Frozen):
    name: str
    num_bytes: int
    num_tensors: int


class Inspection(Frozen):
    """num_parameters: tied tensors once; of a residual, of the difference that it stands for.
    dtypes: tensors by dtype, as stored. facts: what only this kind has, in plain values."""

    kind: Kind
    path: str
    architecture: str
    num_parameters: int
    num_bytes: int
    dtypes: dict[str, int]
    shards: list[ShardSize]
    tied: dict[str, str]
    eos_token_ids: list[int]
    headers: str
    facts: dict[str, JsonValue]


def inspect(path: Path) -> Inspection:
    """What lies in a directory. Raises ArtifactError or CompatibilityError when its headers and its
    records do not agree, or when it is nothing of ours."""
    if (path / MANIFEST_FILE).is_file():
        return _residual(path)
    if is_adapter(path):
        return _adapter(path)
    if not (path / CONFIG_FILE).is_file():
        raise ArtifactError(
            f"{path} is neither a residual nor a model",
            problems=[f"no {MANIFEST_FILE}, {CONFIG_FILE} or {ADAPTER_CONFIG_FILE} in it"]
            if path.is_dir()
            else ["no such directory"],
            remedy="Give the directory of a residual, a merged model, a model or an adapter.",
        )
    return _package(path) if is_residuals_folder(path) else _model(path)


def _residual(path: Path) -> Inspection:
    artifact = open_residual(path)
    manifest = artifact.manifest
    ids = [*eos_ids_of(artifact.instruct_folder), *manifest.base.eos_token_ids]
    ranks = [record.rank for record in manifest.tensors.values() if record.rank is not None]
    facts: dict[str, JsonValue] = {
        "storage": manifest.storage.model_dump(mode="json"),
        "base_norm": manifest.base_norm,
        "instruct_norm": manifest.instruct_norm,
        "residual_norm": manifest.residual_norm,
        "relative_norm": manifest.residual_norm / manifest.base_norm
        if manifest.base_norm
        else None,
        "cosine_base_residual": manifest.cosine_base_residual,
        "bit_exact": manifest.bit_exact,
        "num_wrong": manifest.num_wrong,
        "num_rounded": manifest.num_rounded,
        "num_zero_signs": manifest.num_zero_signs,
        "max_ulps": manifest.max_ulps,
        "relative_error": manifest.relative_error,
        "ranks": [min(ranks), max(ranks)] if ranks else None,
        "token_map_hash": manifest.token_map_hash,
        "base_shards": dict(manifest.base.shards),
        "instruct_shards": dict(manifest.instruct.shards),
    }
    origin = read_origin(path)
    if origin is not None:
        facts |= {"made_from": origin.model_dump(mode="json", include={"base", "instruct"})}
    return Inspection(
        kind="residual",
        path=str(path),
        architecture=manifest.facts.model_type,
        num_parameters=manifest.num_parameters,
        num_bytes=sum(shard.num_bytes for shard in artifact.shards),
        dtypes=_dtypes(artifact.tensors.values()),
        shards=_shards(artifact.shards),
        tied=dict(manifest.tied),
        eos_token_ids=list(dict.fromkeys(ids)),
        headers=headers_hash(artifact.shards),
        facts=facts,
    )


def _package(path: Path) -> Inspection:
    folder = read_residuals_folder(path)
    facts: dict[str, JsonValue] = {
        "base_model_name": folder.config.base_model_name,
        "instruct_model_name": folder.config.instruct_model_name,
    }
    return Inspection(
        kind="residuals package",
        path=str(path),
        architecture="not recorded",
        num_parameters=sum(entry.num_elements for entry in folder.tensors.values()),
        num_bytes=sum(shard.num_bytes for shard in folder.shards),
        dtypes=_dtypes(folder.tensors.values()),
        shards=_shards(folder.shards),
        tied={},
        eos_token_ids=[],
        headers=headers_hash(folder.shards),
        facts=facts,
    )


def _model(path: Path) -> Inspection:
    merged = (path / MERGE_FILE).is_file()
    checkpoint = open_checkpoint(path, role="merged model" if merged else "model", to_look=True)
    facts = _merge_facts(read_merge_record(path)) if merged else {}
    if method := stated_method(checkpoint.config):
        facts |= {"config_says_quantised": method}
    return Inspection(
        kind="merged model" if merged else "model",
        path=str(path),
        architecture=checkpoint.facts.model_type,
        num_parameters=checkpoint.num_parameters,
        num_bytes=checkpoint.num_bytes,
        dtypes=_dtypes(checkpoint.tensors.values()),
        shards=_shards(checkpoint.shards),
        tied=dict(checkpoint.aliases),
        eos_token_ids=eos_ids_of(path),
        headers=headers_hash(checkpoint.shards),
        facts=facts,
    )


def _merge_facts(record: MergeRecord) -> dict[str, JsonValue]:
    recipe = record.recipe
    return {
        "alpha": record.alpha,
        "recipe": recipe.model_dump(mode="json"),
        "inputs": [each.model_dump(mode="json") for each in record.inputs],
        "target_norm": record.target_norm,
        "residual_norm": record.residual_norm,
        "relative_norm": record.relative_norm,
        "cosine": record.cosine,
        "lost_share": record.lost_share,
        "stops_at": [*record.stops_at] if record.stops_at is not None else None,
    }


def _adapter(path: Path) -> Inspection:
    fields = read_json_object(path / ADAPTER_CONFIG_FILE, "adapter")
    shards = [read_shard(file) for file in sorted(path.glob("*.safetensors"))]
    entries = [entry for shard in shards for entry in shard.tensors]
    kept = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    facts: dict[str, JsonValue] = {key: fields[key] for key in kept if key in fields}
    return Inspection(
        kind="adapter",
        path=str(path),
        architecture=str(fields.get("peft_type", "unknown")).lower(),
        num_parameters=sum(entry.num_elements for entry in entries),
        num_bytes=sum(shard.num_bytes for shard in shards),
        dtypes=_dtypes(entries),
        shards=_shards(shards),
        tied={},
        eos_token_ids=[],
        headers=headers_hash(shards),
        facts=facts,
    )


def _dtypes(entries: Iterable[TensorEntry]) -> dict[str, int]:
    counts: Mapping[str, int] = Counter(entry.dtype for entry in entries)
    return dict(sorted(counts.items()))


def _shards(shards: Iterable[Shard]) -> list[ShardSize]:
    return [
        ShardSize(name=shard.name, num_bytes=shard.num_bytes, num_tensors=len(shard.tensors))
        for shard in shards
    ]
