"""The weights tools as functions: compute a residual, apply it, look at what lies on disk.

    from cpt_residual import api

    api.compute("org/base@COMMIT", "org/instruct@COMMIT", Path("residual"))
    api.apply("base_cpt", Path("residual"), Path("merged"), alphas=[0.5, 1.0])
    api.apply("base_cpt", api.Pair("base", "instruct"), Path("merged"))

The command line calls these and nothing else. A model is a directory or `ORG/NAME@COMMIT` on the
hub (safetensors only; code from a model never runs). Everything a user can fix is raised as a
`CptResidualError`, and no output is left half made. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpt_residual.config.merging import (
    EXACT_STORAGE,
    PLAIN_ADDITION,
    MergeRecipe,
    Storage,
    VocabPolicy,
)
from cpt_residual.core.files import write_json_atomic
from cpt_residual.weights.analysis import model_distance as ancestry
from cpt_residual.weights.analysis.geometry import Family, GeometryReport, measure
from cpt_residual.weights.analysis.inspection import Inspection, inspect
from cpt_residual.weights.apply.dry_run import WorkPlan, plan_of_compute
from cpt_residual.weights.apply.job import (
    ApplyJob,
    ApplyOptions,
    base_of,
    output_folders,
    outputs_of,
    plain_disk_words,
)
from cpt_residual.weights.apply.open_inputs import Pair, adapter_base, opened_target, origin_of
from cpt_residual.weights.interop.adapter import require_plain_lora
from cpt_residual.weights.io.checkpoint import is_adapter
from cpt_residual.weights.io.input_files import InputFiles
from cpt_residual.weights.io.model_ref import ModelReference, open_named, pinned
from cpt_residual.weights.io.output_dir import fresh_directory, require_apart, require_free
from cpt_residual.weights.io.reader import DEFAULT_STREAMING, Streaming
from cpt_residual.weights.merge import verification
from cpt_residual.weights.merge.card import card_markdown
from cpt_residual.weights.merge.merge import MergeReport
from cpt_residual.weights.merge.merge_record import ORIGIN_FILE, read_merge_record
from cpt_residual.weights.merge.verification import Verified, verify_model
from cpt_residual.weights.residual import compute as residual
from cpt_residual.weights.residual.residual_format import ResidualManifest
from cpt_residual.weights.residual.source import PairDelta

__all__ = [
    "ApplyOptions",
    "Inspection",
    "MergeReport",
    "ModelReference",
    "Pair",
    "Verified",
    "WorkPlan",
    "ancestry_warnings",
    "apply",
    "card",
    "compute",
    "geometry",
    "inspect",
    "output_folders",
    "plan_apply",
    "plan_compute",
    "verify_model",
    "verify_residual",
]

DEFAULT_OPTIONS = ApplyOptions()


def compute(
    base: ModelReference,
    instruct: ModelReference,
    out: Path,
    *,
    storage: Storage = EXACT_STORAGE,
    vocab_policy: VocabPolicy = "equal",
    streaming: Streaming = DEFAULT_STREAMING,
) -> ResidualManifest:
    """theta_instruct - theta_base into the new directory `out`, with the names of the two models.

    What it guarantees and raises: `weights.residual.compute`; ArtifactError, too, for models that
    change meanwhile."""
    require_free(out)
    left, right = open_named(base, role="base"), open_named(instruct, role="instruct")
    inputs = InputFiles.of([left.checkpoint, right.checkpoint])
    with plain_disk_words(out), fresh_directory(out, inputs=inputs.folders) as folder:
        manifest = residual.compute(
            left.checkpoint,
            right.checkpoint,
            folder,
            storage=storage,
            vocab_policy=vocab_policy,
            streaming=streaming,
        )
        write_json_atomic(folder / ORIGIN_FILE, origin_of(left, right))
        inputs.require_unchanged()
    return manifest


def plan_compute(
    base: ModelReference,
    instruct: ModelReference,
    out: Path,
    *,
    storage: Storage = EXACT_STORAGE,
    vocab_policy: VocabPolicy = "equal",
    streaming: Streaming = DEFAULT_STREAMING,
) -> WorkPlan:
    """What `compute` with these arguments would read, write and need; the checks that need headers
    and tokenizers alone are made, and nothing is written."""
    require_free(out)
    left, right = (
        open_named(reference, role=role).checkpoint
        for reference, role in ((base, "base"), (instruct, "instruct"))
    )
    require_apart(out, (left.path, right.path))
    PairDelta(left, right, vocab_policy)  # raises for models that do not belong together
    with plain_disk_words(out):
        return plan_of_compute(left, right, out, storage=storage, streaming=streaming)


def apply(
    target: ModelReference,
    source: Path | Pair,
    out: Path,
    *,
    alphas: Sequence[float] = (1.0,),
    recipe: MergeRecipe = PLAIN_ADDITION,
    options: ApplyOptions = DEFAULT_OPTIONS,
) -> list[MergeReport]:
    """theta_target + alpha * residual into `output_folders(out, alphas)`, in one pass.

    `source` is a residual's directory, or the pair itself. An output appears only when it is
    complete, with merge.json and a model card and, unless told otherwise, checked. Interrupted or
    killed, the same call resumes and gives the same bytes.
    """
    outputs = outputs_of(out, alphas)
    base = base_of(source, options)
    with opened_target(target, base, out, streaming=options.streaming) as opened:
        job = ApplyJob.of(opened, source, outputs, recipe=recipe, options=options)
        with plain_disk_words(out):
            return job.run()


def plan_apply(
    target: ModelReference,
    source: Path | Pair,
    out: Path,
    *,
    alphas: Sequence[float] = (1.0,),
    recipe: MergeRecipe = PLAIN_ADDITION,
    options: ApplyOptions = DEFAULT_OPTIONS,
) -> WorkPlan:
    """What `apply` with these arguments would read, write and need; see `plan_compute`. An adapter
    is not merged for it: its base stands for it."""
    outputs = outputs_of(out, alphas)
    folder = pinned(target, role="target")
    if not isinstance(folder, Path) or not is_adapter(folder):
        opened, scratch_bytes = open_named(folder, role="target"), 0
    else:
        require_plain_lora(folder)
        require_apart(out, (folder,))
        start = adapter_base(folder, base_of(source, options))
        opened = replace(start, checkpoint=replace(start.checkpoint, role="target"))
        scratch_bytes = opened.checkpoint.num_bytes
    job = ApplyJob.of(opened, source, outputs, recipe=recipe, options=options)
    with plain_disk_words(out):
        return job.plan().with_scratch(scratch_bytes)


def verify_residual(
    path: Path,
    *,
    base: ModelReference | None = None,
    instruct: ModelReference | None = None,
    streaming: Streaming = DEFAULT_STREAMING,
) -> Verified:
    """Reads a residual back and compares (see `weights.merge.verification.verify_residual`)."""
    return verification.verify_residual(
        path,
        base=None if base is None else open_named(base, role="base").checkpoint,
        instruct=None if instruct is None else open_named(instruct, role="instruct").checkpoint,
        streaming=streaming,
    )


def geometry(
    pair: Pair,
    base_cpt: ModelReference,
    *,
    instruct_cpt: ModelReference | None = None,
    streaming: Streaming = DEFAULT_STREAMING,
) -> GeometryReport:
    """How far CPT and instruction tuning went, and whether against each other."""
    last = instruct_cpt and open_named(instruct_cpt, role="instruct_cpt").checkpoint
    family = Family(
        base=open_named(pair.base, role="base").checkpoint,
        instruct=open_named(pair.instruct, role="instruct").checkpoint,
        base_cpt=open_named(base_cpt, role="base_cpt").checkpoint,
        instruct_cpt=last or None,
    )
    return measure(family, streaming=streaming)


def ancestry_warnings(
    residual_base: ModelReference,
    target_base: ModelReference,
    *,
    streaming: Streaming = DEFAULT_STREAMING,
) -> list[str]:
    """What to know, in numbers, before the residual of one base goes onto a descendant of another;
    often nothing. Price: one read of each (see `weights.analysis.model_distance`)."""
    left = open_named(residual_base, role="base").checkpoint
    right = open_named(target_base, role="target_base").checkpoint
    return ancestry.warnings(ancestry.measure(left, right, streaming=streaming))


def card(model: Path) -> str:
    """The model card (Markdown) of a model that `apply` has made, from its merge.json."""
    return card_markdown(read_merge_record(model))
