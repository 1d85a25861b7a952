"""A released model, pinned: links to the large files of a hub snapshot or a local directory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NoReturn

from cpt_residual.config.schema import Frozen, PretrainedModel
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.rates import DOWNLOAD_BYTES_PER_SECOND, SECONDS_TO_LINK_MODEL
from cpt_residual.core.stage import (
    ONE_CORE,
    ArtifactRef,
    Cost,
    Metrics,
    Resources,
    RunContext,
    Stage,
)
from cpt_residual.errors import ArtifactError
from cpt_residual.launch.hub import MODEL_SUFFIXES, HubModel, snapshot
from cpt_residual.modeling.side_files import carried_files, left_out_files
from cpt_residual.weights.io.checkpoint import open_checkpoint

_NOT_WANTED = re.compile(r"^(training_args|trainer_state|adapter_|consolidated|README|LICENSE|\.)")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_BYTES_PER_PARAMETER = 2


class SourceRecipe(Frozen):
    """A hub id with its commit, or the sha256 of each file of a local directory."""

    hub_id: str | None
    revision: str | None
    files: dict[str, str] | None


@dataclass(frozen=True)
class Source:
    """One released model. `file_hashes` (name -> sha256 of `source_files`) pins a local directory,
    whose path is not part of the identity; None for the hub."""

    key: str
    model: PretrainedModel
    file_hashes: Mapping[str, str] | None = field(default=None, hash=False)

    name: ClassVar[str] = "source"
    version: ClassVar[int] = 2
    links_allowed: ClassVar[bool] = True

    @property
    def node(self) -> str:
        return self.key

    @property
    def needs_network(self) -> bool:
        """A model of the hub is downloaded while this is built."""
        return self.model.revision is not None

    @property
    def local_folder(self) -> Path | None:
        """Where the model lies now; None for the hub."""
        return Path(self.model.source) if self.model.revision is None else None

    def num_parameters(self) -> int:
        """As configured, else from a local directory's headers; 0 when not known yet."""
        if self.model.num_parameters is not None:
            return self.model.num_parameters
        if self.model.revision is not None:
            return 0
        path = Path(self.model.source)
        return open_checkpoint(path, role=self.key, links_allowed=True).num_parameters_stored

    def recipe(self) -> SourceRecipe:
        if self.model.revision is not None:
            return SourceRecipe(hub_id=self.model.source, revision=self.model.revision, files=None)
        assert self.file_hashes is not None, "a local source is pinned by its files"
        return SourceRecipe(hub_id=None, revision=None, files=dict(self.file_hashes))

    def inputs(self) -> Mapping[str, Stage]:
        return {}

    def cost(self) -> Cost:
        if self.model.revision is None:
            return Cost(seconds=SECONDS_TO_LINK_MODEL)
        size = _BYTES_PER_PARAMETER * self.num_parameters()
        return Cost(seconds=size / DOWNLOAD_BYTES_PER_SECOND, disk_bytes=size)

    def resources(self) -> Resources:
        return ONE_CORE

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        del inputs
        folder = Path(self.model.source)
        if self.model.revision is not None:
            folder = snapshot(HubModel(self.model.source, self.model.revision), role=self.key)
        # Links are the hub cache's layout; a local directory's are pinned by content.
        open_checkpoint(folder, role=self.key, links_allowed=True)
        names = source_files(folder)
        self._check_content(folder, names, ctx)
        out = work / "out"
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        for name in names:
            if name.endswith(".safetensors"):
                (out / name).symlink_to((folder / name).resolve())
            else:
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, out / name)
        _check_loads(out)
        checkpoint = open_checkpoint(out, role=self.key, links_allowed=True)
        left_out = [name for name in left_out_files(folder) if name not in names]
        dtypes = sorted({entry.dtype for entry in checkpoint.tensors.values()})
        return {
            "num_parameters": checkpoint.num_parameters,
            "num_bytes": checkpoint.num_bytes,
            "dtypes": " ".join(dtypes),
            "revision": self.model.revision or "local files",
            **({"left_out": ", ".join(left_out)} if left_out else {}),
        }

    def _check_content(self, folder: Path, names: list[str], ctx: RunContext) -> None:
        """Local files against the plan's hashes; hub files against their names in the cache."""
        expected = dict(self.file_hashes or {})
        if self.model.revision is not None:
            blobs = {name: (folder / name).resolve().name for name in names}
            expected = {name: blob for name, blob in blobs.items() if _SHA256.match(blob)}
        elif set(expected) != set(names):
            changed = sorted(set(expected) ^ set(names))
            _raise_changed(self.key, [f"{name}: added or removed" for name in changed])
        problems: list[str] = []
        for number, (name, sha256) in enumerate(sorted(expected.items())):
            ctx.progress(number, len(expected), "files")
            found = file_sha256(folder / name)
            if found != sha256:
                problems.append(f"{name}: sha256 {found}, expected {sha256}")
        if problems:
            _raise_changed(self.key, problems)


def source_files(folder: Path) -> list[str]:
    """Names of the files that make up a model directory: the weights that are loaded, and the
    small files beside them (configs, tokenizer, templates, named ones too); sorted, torch-free."""
    checkpoint = open_checkpoint(folder, role=folder.name, links_allowed=True)
    weights = {shard.name for shard in checkpoint.shards}
    small = {
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix in MODEL_SUFFIXES
        and path.suffix != ".safetensors"
        and not _NOT_WANTED.match(path.name)
    }
    return sorted(weights | small | set(carried_files(folder)))


def check_model(folder: Path, key: str) -> None:
    """Raises unless headers, config and tokenizer load and the tensors are those of the
    architecture. Reads no weights."""
    from cpt_residual.weights.merge.verification import require_known_tensors

    checkpoint = open_checkpoint(folder, role=key, links_allowed=True)
    _check_loads(folder)
    require_known_tensors(checkpoint)


def _check_loads(folder: Path) -> None:
    """Config and tokenizer load without network and without code from the model's directory."""
    from cpt_residual.modeling.loading import load_config
    from cpt_residual.modeling.tokenizer import load_tokenizer

    load_config(folder)
    load_tokenizer(folder)


def _raise_changed(key: str, problems: list[str]) -> NoReturn:
    raise ArtifactError(
        f"{key}: the files are not those that were pinned",
        problems=problems,
        remedy="Local files changed since the plan was made: plan again. Files of the hub cache "
        "are damaged: remove them from the cache and run again.",
    )
