"""theta_target + alpha * residual, streamed shard by shard (Jindal et al. 2024, eq. 2).

Guarantee: every element is the float64 value of its formula, rounded once to the target's dtype;
alpha = 0 gives the target's weight files byte for byte; shard files, index, names and metadata are
the target's; a stored residual and its two models give the same bytes. Several alphas share one
pass over the inputs. Outputs appear whole or not at all; a kill loses at most the shard in work.
Memory: a few blocks per thread. Price: one read of target and residual, one write per alpha.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.merging import PLAIN_ADDITION, MergeRecipe
from cpt_residual.core.disk import FullDiskReport, check_free_space
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.side_files import carried_files, eos_ids_of
from cpt_residual.weights.io.checkpoint import INDEX_FILE, Checkpoint
from cpt_residual.weights.io.input_files import InputFiles
from cpt_residual.weights.io.output_dir import OutputFolder
from cpt_residual.weights.io.reader import DEFAULT_STREAMING, Streaming
from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.maths.strengths import require_known_scales
from cpt_residual.weights.merge.double_apply_check import require_not_instruct
from cpt_residual.weights.merge.inputs import Addition
from cpt_residual.weights.merge.merge_pass import Inputs, MergePass
from cpt_residual.weights.merge.merge_record import MergeNumbers
from cpt_residual.weights.merge.vocab_rules import output_index
from cpt_residual.weights.residual.source import DeltaSource
from cpt_residual.weights.tokens import chat_contract

_SQUARES_HOLD = 1e-150  # float64 holds the square of a larger norm


@dataclass(frozen=True)
class Output:
    """One merged model: how much of the residual, and the directory that will hold it."""

    alpha: float
    folder: Path


class MergeReport(MergeNumbers):
    """What a merge measured, and where its model lies."""

    folder: Path


@dataclass(frozen=True)
class MergedModel:
    """A complete model that lies in `folder` and will appear in `report.folder`."""

    report: MergeReport
    folder: Path


def merge(
    target: Checkpoint,
    source: DeltaSource,
    outputs: Sequence[Output],
    *,
    recipe: MergeRecipe = PLAIN_ADDITION,
    base: Checkpoint | None = None,
    streaming: Streaming = DEFAULT_STREAMING,
) -> list[MergeReport]:
    """Writes a merged model directory per output, with the chat contract (see chat_contract).

    Raises as `merged_models` does; the outputs are then untouched. `stops.verify_stops` is
    the caller's next step.
    """
    addition = Addition(target, source, recipe, base)
    with merged_models(addition, outputs, streaming=streaming) as models:
        return [model.report for model in models]


@contextmanager
def merged_models(
    addition: Addition, outputs: Sequence[Output], *, streaming: Streaming = DEFAULT_STREAMING
) -> Generator[list[MergedModel]]:
    """The merged models, complete but not published: they appear, all of them, when the block ends
    without an error.

    Raises CompatibilityError for a target that the residual does not fit, or that is instruct
    itself, and for values that are not finite; ArtifactError for an output that exists or lies in
    an input, and for inputs that change meanwhile; BusyError when another process works on an
    output.
    """
    target, source, recipe = addition.target, addition.source, addition.recipe
    files = InputFiles.of(addition.checkpoints, folders=[source.instruct_side], files=source.files)
    _require_sense(outputs)
    addition.require_fit(threads=streaming.threads)
    require_known_scales(target.unique_tensors, recipe.scales, addition.rows)
    require_not_instruct(target, source, alphas=[output.alpha for output in outputs])
    inputs = Inputs(
        target,
        source,
        addition.base_read,
        addition.plan,
        addition.rows,
        untied=addition.untied,
        files=files,
    )
    job = MergePass(inputs, recipe, streaming)
    with ExitStack() as stack:
        folders = [
            stack.enter_context(
                OutputFolder(
                    output.folder,
                    stamp=job.stamp(output.alpha),
                    side_stamp=files.stamp(),
                    inputs=files.folders,
                )
            )
            for output in outputs
        ]
        stack.enter_context(FullDiskReport(outputs[0].folder, 0))
        check_free_space(outputs[0].folder, job.num_missing_bytes(folders))
        index = output_index(target, job.shards)
        for folder in folders:
            if not folder.published:
                _write_side_files(folder.path, addition, index)
        job.write([output.alpha for output in outputs], folders)
        totals = [_total(folder.done.values()) for folder in folders]
        recorded = None if addition.untied else source.recorded_norm  # the head is not in it
        _require_recorded_norm(recorded, recipe, outputs, totals)
        yield [
            MergedModel(_report(output, sums, job.num_parameters, folder.path, source), folder.path)
            for output, sums, folder in zip(outputs, totals, folders, strict=True)
        ]
        files.require_unchanged()
        for folder in folders:
            folder.seal()
        for folder in folders:
            folder.publish()


def _write_side_files(out: Path, addition: Addition, index: bytes | None) -> None:
    source = addition.source
    chat_contract.install(
        instruct_side=source.instruct_side,
        base_eos=source.base_eos,
        target=addition.target.path,
        out=out,
        plan=addition.plan,
        sides=(source.tokens, addition.target_tokens),
    )
    if index is not None:
        (out / INDEX_FILE).write_bytes(index)


def _require_sense(outputs: Sequence[Output]) -> None:
    problems = [f"alpha is {each.alpha}" for each in outputs if not math.isfinite(each.alpha)]
    folders = [each.folder.resolve() for each in outputs]
    problems += sorted({f"{path}: named twice" for path in folders if folders.count(path) > 1})
    problems += [f"{path}: lies in another" for path in folders if {*path.parents} & {*folders}]
    if problems or not outputs:
        raise CompatibilityError(
            "The outputs do not make sense",
            problems=problems or ["there is none"],
            remedy="Give finite numbers, 1.0 is the paper, and a directory of its own to each.",
        )


def _require_recorded_norm(
    recorded: float | None,
    recipe: MergeRecipe,
    outputs: Sequence[Output],
    totals: Sequence[MergeSums],
) -> None:
    """ArtifactError when what plain addition added has not the norm that a stored residual
    recorded: its files were damaged (this costs nothing; `verify` reads every byte).
    CompatibilityError when it added nothing at all."""
    if recipe != PLAIN_ADDITION:
        return
    for output, total in zip(outputs, totals, strict=True):
        if output.alpha and not total.num_moved:
            raise CompatibilityError(
                "The residual is zero: nothing would be added",
                problems=["base and instruct have the same weights"],
                remedy="Nothing was published. Give the two different models of one release.",
            )
        if recorded is None:
            continue
        wanted, found = abs(output.alpha) * recorded, math.sqrt(total.move_squared)
        if wanted > _SQUARES_HOLD and not math.isclose(wanted, found, rel_tol=1e-6):
            raise ArtifactError(
                "The residual is not what was written",
                problems=[f"alpha * residual has norm {found:.9g}, recorded {wanted:.9g}"],
                remedy="Its files were changed or damaged; nothing was published. Compute it "
                "again (`cpt-residual verify` names the tensors).",
            )


def _total(parts: Iterable[MergeSums]) -> MergeSums:
    total = MergeSums()
    for part in parts:
        total = total.plus(part)
    return total


def _report(
    output: Output, sums: MergeSums, num_parameters: int, model: Path, source: DeltaSource
) -> MergeReport:
    replaced = [
        name for name in carried_files(source.instruct_side) if not (model / name).is_file()
    ]
    return MergeReport(
        alpha=output.alpha,
        folder=output.folder,
        num_parameters=num_parameters,
        target_norm=math.sqrt(sums.target_squared),
        residual_norm=math.sqrt(sums.move_squared),
        relative_norm=arithmetic.relative_norm(sums.move_squared, sums.target_squared),
        cosine=arithmetic.cosine(sums.target_dot_move, sums.target_squared, sums.move_squared),
        lost_share=sums.num_lost / sums.num_moved if sums.num_moved else 0.0,
        eos_token_ids=tuple(eos_ids_of(model)),
        left_out=(*replaced, *source.left_out),
    )
