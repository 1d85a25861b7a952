"""One `apply`: open the inputs, check the outputs, publish each output atomically."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.run_record import code_version, library_versions
from cpt_residual.errors import ConfigError, DiskSpaceError
from cpt_residual.launch.hub import HubModel
from cpt_residual.modeling.chat_check import require_chat_side
from cpt_residual.weights.apply.dry_run import MergeWork, WorkPlan, plan_of_merge
from cpt_residual.weights.apply.open_inputs import Input, Pair, open_source
from cpt_residual.weights.io.model_ref import ModelReference, NamedModel, name_of, open_named
from cpt_residual.weights.io.output_dir import require_apart, require_free
from cpt_residual.weights.io.reader import DEFAULT_STREAMING, Streaming
from cpt_residual.weights.maths.strengths import require_known_scales
from cpt_residual.weights.merge import verification
from cpt_residual.weights.merge.card import CARD_FILE, card_markdown
from cpt_residual.weights.merge.double_apply_check import require_not_instruct
from cpt_residual.weights.merge.inputs import Addition
from cpt_residual.weights.merge.merge import (
    MergedModel,
    MergeReport,
    Output,
    merged_models,
)
from cpt_residual.weights.merge.merge_record import (
    MERGE_FILE,
    InputRecord,
    MergeRecord,
    Role,
    ShardRecord,
)
from cpt_residual.weights.merge.vocab_rules import output_shards
from cpt_residual.weights.tokens.matching import notes_on


@dataclass(frozen=True)
class ApplyOptions:
    """How an apply runs. target_base: the model that CPT made the target from, for recipes that
    need it (a Pair's base where it is not given). verify: read the outputs back, show that they
    load and stop, and record in merge.json the sha256 of outputs and inputs (one more read of the
    models). streaming: threads and progress."""

    target_base: ModelReference | None = None
    verify: bool = True
    streaming: Streaming = DEFAULT_STREAMING


def output_folders(out: Path, alphas: Sequence[float]) -> list[Path]:
    """`out` itself for one alpha, else `out/alpha_0.5` and so on.

    Raises ConfigError for alphas that are not finite, or the same twice."""
    problems = [
        f"alpha {alpha} is not a finite number" for alpha in alphas if not math.isfinite(alpha)
    ]
    repeated = sorted({alpha for alpha in alphas if list(alphas).count(alpha) > 1})
    problems += [f"alpha {alpha} is given more than once" for alpha in repeated]
    if problems or not alphas:
        raise ConfigError(
            "The alphas do not make sense",
            problems=problems or ["there is none"],
            remedy="Nothing was done. Give each finite number once; 1.0 is the paper.",
        )
    return [out] if len(alphas) == 1 else [out / f"alpha_{float(alpha)}" for alpha in alphas]


@dataclass(frozen=True)
class ApplyJob:
    """An apply whose inputs are open and whose outputs are free. name: what the records call the
    model, which is that of its directory where there is no store; in_store: an artifact."""

    addition: Addition
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    options: ApplyOptions
    name: str = ""
    in_store: bool = False

    @classmethod
    def of(
        cls,
        target: NamedModel,
        source: Path | Pair,
        outputs: tuple[Output, ...],
        *,
        recipe: MergeRecipe,
        options: ApplyOptions,
        base: NamedModel | None = None,
    ) -> ApplyJob:
        reference = base_of(source, options)
        wanted = recipe.needs_base or options.target_base is not None
        if reference and wanted:
            base = open_named(reference, role="target_base")
        delta, inputs = open_source(
            source, target.checkpoint, policy=recipe.vocab_policy, streaming=options.streaming
        )
        addition = Addition(target.checkpoint, delta, recipe, base.checkpoint if base else None)
        folders = [each.path for each in addition.checkpoints]
        folders += [path.parent for path in delta.files]
        for output in outputs:
            require_apart(output.folder, folders)
        return cls(
            addition=addition,
            inputs=(Input.of(target), *inputs, *([Input.of(base)] if base else [])),
            outputs=outputs,
            options=options,
        )

    def published(
        self,
        files: Mapping[Role, Mapping[str, str]],
        hubs: Mapping[Role, HubModel],
        *,
        name: str,
    ) -> ApplyJob:
        """The same for an artifact. files: of the models that are artifacts, name to sha256; hubs:
        released ones; name: what the records call the output, decided by its recipe."""
        inputs = [
            each.published(files.get(each.record.role, {}), hubs.get(each.record.role))
            for each in self.inputs
        ]
        return replace(self, inputs=tuple(inputs), name=name, in_store=True)

    def plan(self) -> WorkPlan:
        """What `run` would cost; makes its checks as far as headers and tokenizers go, and shows
        that the target is not instruct."""
        addition, target = self.addition, self.addition.target
        shards = output_shards(target, addition.plan)
        addition.require_base()
        require_known_scales(target.unique_tensors, addition.recipe.scales, addition.rows)
        require_not_instruct(target, addition.source, alphas=[each.alpha for each in self.outputs])
        work = MergeWork(
            input_bytes=self._input_bytes(),
            hashed_bytes=sum(each.num_bytes_to_hash for each in self.inputs),
            output_bytes=sum(shard.num_bytes for shard in shards),
            shapes=tuple(entry.shape for entry in target.unique_tensors.values()),
        )
        self._require_chat_side()
        return plan_of_merge(
            work,
            [output.folder for output in self.outputs],
            recipe=addition.recipe,
            verify=self.options.verify,
            streaming=self.options.streaming,
        )

    def _require_chat_side(self) -> None:
        """What the last check would find in instruct's small files is said before any work."""
        if self.options.verify:
            require_chat_side(self.addition.source.instruct_side, "instruct")

    def _input_bytes(self) -> int:
        """What one pass reads."""
        addition = self.addition
        size = addition.target.num_bytes
        size += sum(path.stat().st_size for path in addition.source.files)
        return size + (addition.base_read.num_bytes if addition.base_read else 0)

    def run(self) -> list[MergeReport]:
        """Merges, checks everything, and only then lets the outputs appear."""
        _ = self.addition.plan  # what does not fit is an error before torch is imported
        if self.options.verify:
            self._require_chat_side()
            verification.require_known_tensors(self.addition.target)
        with merged_models(self.addition, self.outputs, streaming=self.options.streaming) as models:
            records = self._records()  # of files that are shown not to have changed meanwhile
            return [self._finish(model, records) for model in models]

    def _records(self) -> list[InputRecord]:
        if not self.options.verify:
            return [each.record for each in self.inputs]
        return [each.hashed(self.options.streaming) for each in self.inputs]

    def _notes(self) -> list[str]:
        addition = self.addition
        read = [*addition.source.checkpoints, *([addition.base_read] if addition.base_read else [])]
        return [
            *notes_on(addition.target, carried=True),
            *addition.notes,
            *(line for model in read for line in notes_on(model, carried=False)),
        ]

    def _finish(self, model: MergedModel, inputs: Sequence[InputRecord]) -> MergeReport:
        """Checks a written model and adds merge.json and the card."""
        report, folder, streaming = model.report, model.folder, self.options.streaming
        planned = output_shards(self.addition.target, self.addition.plan)
        written = verification.require_layout(planned, folder)
        shards = {s.name: ShardRecord(num_bytes=s.num_bytes) for s in written.shards}
        if self.options.verify:
            if not self.in_store:  # whose manifest has the hashes
                shards = verification.hashed_shards(written.shards, streaming)
            stops = verification.final_stops(folder, report.folder, in_store=self.in_store)
            report = report.model_copy(update={"stops_at": tuple(stops)})
        record = MergeRecord(
            **report.model_dump(exclude={"folder"}),
            name=self.name or name_of(report.folder.resolve()),
            recipe=self.addition.recipe,
            inputs=list(inputs),
            shards=shards,
            code_version="" if self.in_store else code_version(),
            libraries={} if self.in_store else library_versions(),
            notes=self._notes(),
        )
        write_json_atomic(folder / MERGE_FILE, record)
        (folder / CARD_FILE).write_text(card_markdown(record), encoding="utf-8")
        return report


def outputs_of(out: Path, alphas: Sequence[float]) -> tuple[Output, ...]:
    """Raises before anything is read when an output is taken or cannot be written."""
    folders = output_folders(out, alphas)
    for folder in folders:
        require_free(folder)
    return tuple(Output(float(alpha), path) for alpha, path in zip(alphas, folders, strict=True))


def base_of(source: Path | Pair, options: ApplyOptions) -> ModelReference | None:
    if options.target_base is not None:
        return options.target_base
    return source.base if isinstance(source, Pair) else None


@contextmanager
def plain_disk_words(out: Path) -> Generator[None]:
    """Around work that writes `out`: a full disk in the words of a user who has no store."""
    try:
        yield
    except DiskSpaceError as error:
        raise DiskSpaceError(
            f"not enough disk space for {out}",
            problems=error.problems,
            remedy="No output was made. Free some space, then run the same command again (finished "
            "shards of a merge are kept), or choose an output on another disk.",
        ) from error
