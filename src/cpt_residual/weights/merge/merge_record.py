"""merge.json in a merged model: what it was made from, how, and what came of it; origin.json in a
residual: the names of its two models.

They hold names, commits and hashes, never a path, a time or a host, so that it may be published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.config.merging import MergeRecipe
from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import read_json_object

MERGE_FILE = "merge.json"
ORIGIN_FILE = "origin.json"

Record = TypeVar("Record", bound=Frozen)
Role = Literal["target", "residual", "base", "instruct", "target_base"]


class InputRecord(Frozen):
    """One input. name: hub id or directory name, empty when only its hash is known; revision: its
    commit; headers: sha256 of its shards' headers, which two checkpoints of one shape share;
    content: sha256 over its shards' sha256, which no two share.

    content is what the verification of an apply reads for it; a residual has its own recorded, and
    that of its two models, whatever is verified. None: not read."""

    role: Role
    name: str
    revision: str | None = None
    headers: str | None = None
    content: str | None = None


class ShardRecord(Frozen):
    """One written file; sha256 is None when the output was not read back."""

    num_bytes: int
    sha256: str | None = None


class MergeNumbers(Frozen):
    """What a merge measured. Norms are Euclidean over all parameters, tied tensors once.

    residual_norm: of what was added (alpha * residual for plain addition); relative_norm:
    residual_norm / target_norm; cosine: between target and what was added; lost_share: elements
    that were to move and that rounding left at the target's value, over all that were to move;
    stops_at: the EOS token ids at which generation was shown to stop, None when that was not asked
    for; left_out: files beside instruct's weights that the output does not have.
    """

    alpha: float
    num_parameters: int
    target_norm: float
    residual_norm: float
    relative_norm: float | None
    cosine: float | None
    lost_share: float
    eos_token_ids: tuple[int, ...]
    stops_at: tuple[int, ...] | None = None
    left_out: tuple[str, ...] = ()


class MergeRecord(MergeNumbers):
    """merge.json. notes: on tensors that no parameter reads or that go by another name (see
    matching.notes_on). An artifact of a store names neither code nor libraries: its receipt does.
    """

    format: Literal["cpt_residual.merge"] = "cpt_residual.merge"
    format_version: Literal[1] = 1
    name: str
    recipe: MergeRecipe
    inputs: list[InputRecord]
    shards: dict[str, ShardRecord]
    code_version: str = ""
    libraries: dict[str, str] = Field(default_factory=dict[str, str])
    notes: list[str] = Field(default_factory=list[str])


class ResidualOrigin(Frozen):
    """origin.json: which models a residual was made from, by name (residual.json: by content)."""

    format: Literal["cpt_residual.origin"] = "cpt_residual.origin"
    format_version: Literal[1] = 1
    base: InputRecord
    instruct: InputRecord


def read_merge_record(model: Path) -> MergeRecord:
    """The record of a merged model. Raises ArtifactError when it has none, or a broken one."""
    path = model / MERGE_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{model} has no {MERGE_FILE}",
            remedy="Only models that `cpt-residual apply` has written have one. Give such a model.",
        )
    return _read(MergeRecord, path)


def read_origin(residual: Path) -> ResidualOrigin | None:
    """The names of a residual's models; None when they were not recorded."""
    path = residual / ORIGIN_FILE
    return _read(ResidualOrigin, path) if path.is_file() else None


def _read(kind: type[Record], path: Path) -> Record:
    try:
        return kind.model_validate(read_json_object(path, path.parent.name))
    except ValidationError as error:
        for found in error.errors(include_url=False):
            if found["type"] == "union_tag_invalid" and found["loc"][-1:] == ("method",):
                raise ArtifactError(
                    f"{path} names the method {found.get('ctx', {}).get('tag')}, which is not "
                    "installed",
                    remedy="Install the package that has it, or the version that wrote the record.",
                ) from error
        raise ArtifactError(
            f"{path} is not a record of this version",
            problems=field_problems(error),
            remedy="It was edited, or written by another version. Make its directory again.",
        ) from error
