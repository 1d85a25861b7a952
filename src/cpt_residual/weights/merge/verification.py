"""Verify residuals and merged models on disk against their records."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from cpt_residual.base_model import Frozen
from cpt_residual.errors import (
    ArtifactError,
    CompatibilityError,
    CptResidualError,
    FinalCheckError,
)
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import Checkpoint, open_checkpoint
from cpt_residual.weights.io.file_hash import file_sha256
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    Block,
    Streaming,
    blocks_of,
    map_in_order,
)
from cpt_residual.weights.io.shard_header import Shard, TensorEntry
from cpt_residual.weights.maths import kernels
from cpt_residual.weights.maths.arithmetic import Raw, merged_exactly, round_once, to_float64
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.merge.merge_record import MERGE_FILE, ShardRecord, read_merge_record
from cpt_residual.weights.merge.vocab_rules import OutputShard
from cpt_residual.weights.residual.open_delta import Exact
from cpt_residual.weights.residual.residual_format import (
    ModelRecord,
    ResidualArtifact,
    open_residual,
    require_intact,
)
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from cpt_residual.weights.tokens.stops import verify_stops

_IN_DIRECTORY = (
    "Nothing was published; the merged weights are kept beside the output. Repair the files that "
    "are named and run the same command again: after changes to generation_config.json, chat "
    "templates and processor configs only the last steps are repeated, after any other the merge "
    "is. With --no-verify the same command publishes the model as it is."
)
_IN_STORE = (
    "Nothing was published; the merged weights are kept. Where the machine was at fault (memory, "
    "versions), run the same command again: only the last steps are repeated. A repaired model is "
    "another input: what depends on it is made again."
)
_NUM_LINES = 3  # of somebody else's message
_TOLERANCE = 1e-9  # of norms: sums of squares, taken block by block in another order
_FP32_ROUNDING = 2.0**-24  # relative, at most
_BLAS_SHARE = 1e-6  # of elements: float64 products differ in their last bits between processors


class Verified(Frozen):
    """What was shown, one sentence each."""

    path: str
    checks: list[str]


@dataclass
class _Found:
    """Of one tensor: the squared norm that is stored, and elements that are rebuilt wrongly."""

    squared: float = 0.0
    num_wrong: int = 0
    num_zero_signs: int = 0


def verify_residual(
    path: Path,
    *,
    base: Checkpoint | None = None,
    instruct: Checkpoint | None = None,
    streaming: Streaming = DEFAULT_STREAMING,
) -> Verified:
    """Reads a residual back: the layout and each tensor's norm against residual.json; given `base`
    or `instruct`, that they are the models it was made from (sha256); given both, that
    base + residual, rounded once, is instruct bit for bit, or misses as much as is recorded.

    Raises ArtifactError that lists every difference. Price: one read of all that is given (two of
    the models).
    """
    artifact = open_residual(path)
    checks = [f"{len(artifact.shards)} shards have the layout that residual.json describes"]
    require_intact(artifact, threads=streaming.threads)
    checks.append(f"{len(artifact.manifest.files)} files have the recorded sha256")
    records = {"base": artifact.manifest.base, "instruct": artifact.manifest.instruct}
    for role, model in (("base", base), ("instruct", instruct)):
        if model is not None:
            _require_same_files(role, records[role], model, streaming)
            checks.append(f"{role} is the model that the residual was made from (sha256)")
    pair = (base, instruct) if base is not None and instruct is not None else None
    found = _read_back(artifact, pair, streaming)
    problems = [
        f"{name}: norm {math.sqrt(each.squared):.9g}, recorded "
        f"{artifact.manifest.tensors[name].residual_norm:.9g}"
        for name, each in found.items()
        if not _norm_fits(each, artifact, name)
    ]
    checks.append(f"{len(found)} tensors have the recorded norms")
    if pair is not None:
        problems += _rebuilt_wrongly(found, artifact)
        checks.append(
            "base + residual is instruct bit for bit"
            if artifact.manifest.bit_exact
            else f"base + residual misses instruct in {artifact.manifest.num_wrong:,} elements and "
            f"{artifact.manifest.num_zero_signs:,} signs of zero, as recorded"
        )
    if problems:
        raise ArtifactError(
            f"The residual {path} is not what was written",
            problems=problems,
            remedy="Its files were changed or damaged. Compute the residual again.",
        )
    return Verified(path=str(path), checks=checks)


def verify_model(path: Path, *, streaming: Streaming = DEFAULT_STREAMING) -> Verified:
    """A model directory: headers agree, merge.json's hashes (where there is one) fit, and, of a
    model with a chat template, that it loads and that generation stops at every EOS token id.

    Raises ArtifactError or CompatibilityError. Price: one read, one load of the model.
    """
    checkpoint = open_checkpoint(path, role="model")
    checks = [f"the headers of {len(checkpoint.shards)} shards agree with each other"]
    if (path / MERGE_FILE).is_file():
        recorded = read_merge_record(path).shards
        _require_recorded(path, recorded, checkpoint, streaming)
        hashed = all(shard.sha256 for shard in recorded.values())
        checks.append(
            f"every shard has the recorded {'sha256' if hashed else 'size'} ({MERGE_FILE})"
        )
    if TokenSide.read(path).has_template:
        require_known_tensors(checkpoint)  # before anything is allocated that has no end
        stops = shown_stops(path)
        checks.append(f"generation stops at {', '.join(map(str, stops))}")
    else:
        checks.append("no chat template: a base model; where its texts stop is not checked")
    return Verified(path=str(path), checks=checks)


def require_layout(expected: Sequence[OutputShard], output: Path) -> Checkpoint:
    """The written model, opened. Raises ArtifactError unless its shards have these headers and
    sizes."""
    written = open_checkpoint(output, role="output")
    wanted = {shard.name: (shard.header, shard.num_bytes) for shard in expected}
    found = {shard.name: (shard.header, shard.num_bytes) for shard in written.shards}
    problems = [
        f"{name}: header or size are not as planned"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if problems:
        raise ArtifactError(
            "The output was not written as it should be",
            problems=problems,
            remedy="Something else wrote to it, or the disk fails. Run the command again.",
        )
    return written


def shown_stops(model: Path) -> list[int]:
    """`stops.verify_stops` without what transformers says meanwhile; what it cannot load
    becomes a CompatibilityError."""
    with _quietly_loading(model):
        return verify_stops(model)


def final_stops(model: Path, out: Path, *, in_store: bool) -> list[int]:
    """`shown_stops` of a complete model that waits to become `out`, a directory or an artifact of
    the store.

    Raises FinalCheckError, which keeps it."""
    try:
        return shown_stops(model)
    except CptResidualError as error:  # whatever of its files is to blame, the weights are whole
        raise FinalCheckError(
            f"{out}: the weights are merged, but the model failed its last check",
            problems=[error.what, *error.problems],
            remedy=_IN_STORE if in_store else _IN_DIRECTORY,
        ) from error


def require_known_tensors(model: Checkpoint) -> None:
    """CompatibilityError for tensors that are not those of the architecture in config.json, before
    work that would end with finding out. Imports torch; reads no weights."""
    from cpt_residual.modeling import loading

    with _quietly_loading(model.path):
        loading.require_known_tensors(
            model.path,
            {entry.name: entry.shape for shard in model.shards for entry in shard.tensors},
        )


@contextmanager
def _quietly_loading(model: Path) -> Generator[None]:
    from transformers.utils import logging

    from cpt_residual.modeling.tokenizer import UNREADABLE

    talk = cast("Any", logging)
    was_shown, level = talk.is_progress_bar_enabled(), talk.get_verbosity()
    talk.disable_progress_bar()
    talk.set_verbosity_error()  # what it reports of tensors is raised
    try:
        yield
    except (AssertionError, ImportError, RuntimeError, *UNREADABLE) as error:
        raise CompatibilityError(
            f"{model.name}: the model does not load",
            problems=(str(error).strip() or type(error).__name__).splitlines()[:_NUM_LINES],
            remedy="Nothing was published. Its config.json, the target's, does not fit its "
            "weights, or the installed transformers does not know the architecture.",
        ) from error
    finally:
        talk.set_verbosity(level)
        if was_shown:
            talk.enable_progress_bar()


def hashed_shards(shards: Sequence[Shard], streaming: Streaming) -> dict[str, ShardRecord]:
    """Sizes and sha256 of files, read back from the disk."""
    num_all, num_done = sum(shard.num_bytes for shard in shards), 0
    found: dict[str, ShardRecord] = {}

    def sha256(shard: Shard) -> tuple[Shard, str]:
        return shard, file_sha256(shard.path)

    for shard, digest in map_in_order(sha256, shards, threads=streaming.threads):
        found[shard.name] = ShardRecord(num_bytes=shard.num_bytes, sha256=digest)
        num_done += shard.num_bytes
        streaming.progress(num_done, num_all, "bytes checked")
    return found


def _require_same_files(
    role: str, record: ModelRecord, model: Checkpoint, streaming: Streaming
) -> None:
    found = {name: shard.sha256 for name, shard in hashed_shards(model.shards, streaming).items()}
    problems = [
        f"{name}: sha256 {str(found.get(name, 'missing'))[:12]}, recorded "
        f"{record.shards.get(name, 'none')[:12]}"
        for name in sorted(found.keys() | record.shards.keys())
        if found.get(name) != record.shards.get(name)
    ]
    if problems:
        raise ArtifactError(
            f"{role}: these are not the weights that the residual was made from",
            problems=problems,
            remedy="Give the model that it was made from; `inspect` lists its files' sha256.",
        )


def _require_recorded(
    path: Path,
    recorded: dict[str, ShardRecord],
    checkpoint: Checkpoint,
    streaming: Streaming,
) -> None:
    found = {shard.name: ShardRecord(num_bytes=shard.num_bytes) for shard in checkpoint.shards}
    if any(shard.sha256 for shard in recorded.values()):
        found = hashed_shards(checkpoint.shards, streaming)
    problems = [
        f"{name}: {_shard_text(found.get(name))}, recorded {_shard_text(recorded.get(name))}"
        for name in sorted(found.keys() | recorded.keys())
        if found.get(name) != recorded.get(name)
    ]
    if problems:
        raise ArtifactError(
            f"The model {path} is not what was written",
            problems=problems,
            remedy="Its files were changed or damaged. Run `cpt-residual apply` again.",
        )


def _shard_text(shard: ShardRecord | None) -> str:
    if shard is None:
        return "missing"
    return f"{shard.num_bytes} bytes" + (f" sha256 {shard.sha256[:12]}" if shard.sha256 else "")


def _read_back(
    artifact: ResidualArtifact,
    pair: tuple[Checkpoint, Checkpoint] | None,
    streaming: Streaming,
) -> dict[str, _Found]:
    """One pass over the residual, and over both models where they are given."""
    found = {name: _Found() for name in artifact.manifest.tensors}
    num_done, num_all = 0, artifact.manifest.num_parameters
    with ExitStack() as stack:
        delta = stack.enter_context(StoredDelta(artifact).opened())
        models = stack.enter_context(PairDelta(*pair, "common_tokens").opened()) if pair else None

        def check(block: Block) -> tuple[Block, _Found]:
            stored = delta.stored(block)
            squared = kernels.dot(stored, stored)
            if models is None:
                return block, _Found(squared=squared)
            base, instruct = models.read(block)
            dtype = artifact.manifest.tensors[block.name].instruct_dtype
            high, low = delta.parts(block)
            rest = np.zeros_like(high) if low is None else low
            exact = merged_exactly(to_float64(base), high, rest, 1.0)
            return block, _rebuilt(exact, instruct, dtype, squared=squared)

        for block, part in map_in_order(check, _blocks(artifact), threads=streaming.threads):
            total = found[block.name]
            total.squared += part.squared
            total.num_wrong += part.num_wrong
            total.num_zero_signs += part.num_zero_signs
            num_done += block.num_elements
            streaming.progress(num_done, num_all, "parameters")
    return found


def _blocks(artifact: ResidualArtifact) -> list[Block]:
    return list(
        blocks_of(
            TensorEntry(name, record.instruct_dtype, record.shape, record.shard, 0)
            for name, record in artifact.manifest.tensors.items()
        )
    )


def _rebuilt(exact: Exact, instruct: Raw, dtype: DtypeName, *, squared: float) -> _Found:
    found = round_once(exact, dtype)
    bits = np.uint32 if dtype == "F32" else np.uint16
    differs = found.view(bits) != instruct.view(bits)
    zero = differs & (to_float64(found) == 0.0) & (to_float64(instruct) == 0.0)
    return _Found(
        squared=squared,
        num_wrong=int(np.count_nonzero(differs & ~zero)),
        num_zero_signs=int(np.count_nonzero(zero)),
    )


def _norm_fits(found: _Found, artifact: ResidualArtifact, name: str) -> bool:
    """Whether the norm of what is stored is the recorded one.

    The record is of instruct - base in fp32. A tensor stored whole in fp32 holds these very values.
    Any other is off by the stored error and by the rounding to fp32 (triangle inequality)."""
    record = artifact.manifest.tensors[name]
    norm = math.sqrt(found.squared) if found.squared >= 0 else math.nan
    lossy = record.rank is not None or record.dtype != "F32"
    error = record.relative_error * (1 + _FP32_ROUNDING) + _FP32_ROUNDING if lossy else 0.0
    return abs(norm - record.residual_norm) <= (error + _TOLERANCE) * record.residual_norm


def _rebuilt_wrongly(found: dict[str, _Found], artifact: ResidualArtifact) -> list[str]:
    """Tensors that base + residual does not give back although the record says it does; for lossy
    storage, whose record counts over all tensors, the sum."""
    manifest = artifact.manifest
    problems = [
        f"{name}: base + residual misses instruct in {each.num_wrong + each.num_zero_signs:,} "
        "elements, the record says none"
        for name, each in found.items()
        if manifest.tensors[name].bit_exact and each.num_wrong + each.num_zero_signs
    ]
    num_wrong = sum(each.num_wrong for each in found.values())
    factored = sum(
        math.prod(record.shape) for record in manifest.tensors.values() if record.rank is not None
    )
    if not problems and abs(num_wrong - manifest.num_wrong) > _BLAS_SHARE * factored:
        problems = [f"{num_wrong:,} elements are missed, recorded {manifest.num_wrong:,}"]
    return problems
