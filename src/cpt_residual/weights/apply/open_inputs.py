"""What is added, and to what: residuals of any layout, pairs of models, adapters, as opened inputs
with the records that merge.json keeps of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cpt_residual.config.merging import VocabPolicy
from cpt_residual.core.hashing import canonical_json, text_sha256
from cpt_residual.errors import ConfigError
from cpt_residual.launch.hub import HubModel
from cpt_residual.weights.interop.adapter import ADAPTER_FILE, merge_adapter
from cpt_residual.weights.interop.residuals_folder import (
    folder_delta,
    is_residuals_folder,
    read_residuals_folder,
)
from cpt_residual.weights.io.checkpoint import ADAPTER_CONFIG_FILE, Checkpoint, is_adapter
from cpt_residual.weights.io.input_files import InputFiles
from cpt_residual.weights.io.model_ref import (
    ModelReference,
    NamedModel,
    headers_hash,
    name_of,
    open_named,
    pinned,
)
from cpt_residual.weights.io.output_dir import OutputFolder, require_apart
from cpt_residual.weights.io.reader import Streaming
from cpt_residual.weights.io.shard_header import Shard
from cpt_residual.weights.merge import verification
from cpt_residual.weights.merge.merge_record import InputRecord, ResidualOrigin, Role, read_origin
from cpt_residual.weights.residual.residual_format import (
    ModelRecord,
    ResidualArtifact,
    open_residual,
    require_intact,
)
from cpt_residual.weights.residual.source import DeltaSource, PairDelta, StoredDelta


@dataclass(frozen=True)
class Pair:
    """base and instruct of one family, in the place of a stored residual."""

    base: ModelReference
    instruct: ModelReference


@dataclass(frozen=True)
class Input:
    """What is read, and what merge.json says of it. shards: the files that tell its content, where
    nothing that lies beside them has recorded it; residual: a stored one, which has."""

    record: InputRecord
    shards: tuple[Shard, ...] = ()
    residual: ResidualArtifact | None = None

    @classmethod
    def of(cls, model: NamedModel) -> Input:
        return cls(_record_of(model), model.checkpoint.shards)

    def published(self, sha256_by_file: Mapping[str, str], hub: HubModel | None) -> Input:
        """The same of an artifact, verified already: its store knows the sha256 of its files, and
        `hub` where it was downloaded from."""
        known: dict[str, str] = {}
        if hub is not None:
            known |= {"name": hub.hub_id, "revision": hub.revision}
        if sha256_by_file:
            known["content"] = _content({x.name: sha256_by_file[x.name] for x in self.shards})
        return Input(self.record.model_copy(update=known))

    @property
    def num_bytes_to_hash(self) -> int:
        stored = self.residual
        files = [stored.path / name for name in stored.manifest.files] if stored else []
        return sum(shard.num_bytes for shard in self.shards) + sum(
            file.stat().st_size for file in files
        )

    def hashed(self, streaming: Streaming) -> InputRecord:
        """The record with the content. Price: one read of `shards`, or of the stored residual.
        Raises ArtifactError when its files are not those that it has recorded."""
        if self.residual is not None:
            require_intact(self.residual, threads=streaming.threads)
        if not self.shards:
            return self.record
        found = verification.hashed_shards(self.shards, streaming)
        content = _content({name: str(shard.sha256) for name, shard in found.items()})
        return self.record.model_copy(update={"content": content})


def open_source(
    source: Path | Pair, target: Checkpoint, *, policy: VocabPolicy, streaming: Streaming
) -> tuple[DeltaSource, list[Input]]:
    """A residual's directory, ours or of the `residuals` package, or a pair; only headers and
    records are read. `target` is what it will be added to."""
    if isinstance(source, Pair):
        base = open_named(source.base, role="base")
        instruct = open_named(source.instruct, role="instruct")
        delta = PairDelta(base.checkpoint, instruct.checkpoint, policy)
        return delta, [Input.of(base), Input.of(instruct)]
    record = InputRecord(role="residual", name=name_of(source))
    if is_residuals_folder(source):
        folder = read_residuals_folder(source)
        record = record.model_copy(update={"headers": headers_hash(folder.shards)})
        return folder_delta(folder, target, streaming=streaming), [Input(record, folder.shards)]
    artifact = open_residual(source)
    manifest, origin = artifact.manifest, read_origin(source)
    headers, content = headers_hash(artifact.shards), _content(manifest.files)
    return StoredDelta(artifact), [
        Input(record.model_copy(update={"headers": headers, "content": content}), (), artifact),
        Input(_with_content("base", origin and origin.base, manifest.base)),
        Input(_with_content("instruct", origin and origin.instruct, manifest.instruct)),
    ]


def origin_of(base: NamedModel, instruct: NamedModel) -> ResidualOrigin:
    """The names of the two models that a residual is made from."""
    return ResidualOrigin(base=_record_of(base), instruct=_record_of(instruct))


def _record_of(model: NamedModel) -> InputRecord:
    """The record of a model, under the role that it was opened in."""
    role = model.checkpoint.role
    assert role in get_args(Role), f"{role} is not a role of merge.json"
    return InputRecord(
        role=role,  # pyright: ignore[reportArgumentType] - just checked
        name=model.name,
        revision=model.revision,
        headers=headers_hash(model.checkpoint.shards),
    )


@contextmanager
def opened_target(
    target: ModelReference, base: ModelReference | None, out: Path, *, streaming: Streaming
) -> Generator[NamedModel]:
    """The target of the merge `out`. A LoRA adapter is first merged into `base`, exactly, beside
    `out`, in a directory that is gone when the block ends; a kill or an interrupt leaves it for the
    next call. Raises ConfigError for an adapter without a base."""
    folder = pinned(target, role="target")
    if not isinstance(folder, Path) or not is_adapter(folder):
        yield open_named(folder, role="target")
        return
    start = adapter_base(folder, base).checkpoint
    inputs = InputFiles.of(
        [start], folders=[folder], files=[folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_FILE]
    )
    require_apart(out, inputs.folders)
    out = out.resolve()
    scratch = out.parent / f".{out.name}.target"
    with OutputFolder(scratch, stamp=inputs.stamp(purpose="adapter")) as merged:
        if not merged.done:
            merge_adapter(folder, start, merged.path, streaming=streaming)
            inputs.require_unchanged()
            merged.complete_all()
        model = open_named(merged.path, role="target")
        yield NamedModel(model.checkpoint, name_of(folder))


def adapter_base(adapter: Path, base: ModelReference | None) -> NamedModel:
    """The model that an adapter was trained on. Raises ConfigError when it is not given."""
    if base is None:
        raise ConfigError(
            f"target: {adapter} is a LoRA adapter, and its base is not given",
            remedy="Nothing was done. Name the model that it was trained on (--target-base).",
        )
    return open_named(base, role="target_base")


def _with_content(role: Role, named: InputRecord | None, record: ModelRecord) -> InputRecord:
    """What is known of a model that a residual was made from: its name perhaps, its content."""
    known = named or InputRecord(role=role, name="")
    return known.model_copy(update={"content": _content(record.shards)})


def _content(sha256_by_file: Mapping[str, str]) -> str:
    return text_sha256(canonical_json(dict(sha256_by_file)))
