"""The work of a merge: each block read once, merged for every alpha, written, flushed, recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.direct import Scratch
from cpt_residual.weights.io.input_files import InputFiles
from cpt_residual.weights.io.output_dir import OutputFolder
from cpt_residual.weights.io.reader import (
    Block,
    ShardReader,
    Streaming,
    map_in_order,
    parts_of,
)
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.maths.arithmetic import RAW_DTYPES, Raw, to_float64
from cpt_residual.weights.maths.kernels import MergeSums
from cpt_residual.weights.maths.strengths import scale_of
from cpt_residual.weights.merge.shard_progress import Flusher, ShardWork, runs_of
from cpt_residual.weights.merge.tensor_rules import Sources, TensorRule, rule_for
from cpt_residual.weights.merge.vocab_rules import AlignedRule, OutputShard, output_shards
from cpt_residual.weights.residual.open_delta import Exact
from cpt_residual.weights.residual.source import DeltaSource
from cpt_residual.weights.tokens.embedding_rows import gather, mean_of_rows, width_of
from cpt_residual.weights.tokens.vocab_alignment import Mean, RowPlan

Rule = TensorRule | AlignedRule
ALPHAS_AT_ONCE = 4
"""Outputs that a thread has memory for."""
_VERSION = 2  # bump when the same inputs and recipe would give other bytes


@dataclass(frozen=True)
class Inputs:
    """What is read, and which row goes where; rows: the tensors with one row per token; untied: see
    Addition.untied."""

    target: Checkpoint
    source: DeltaSource
    base: Checkpoint | None
    plan: RowPlan
    rows: Mapping[str, RowPart]
    untied: Mapping[str, str]
    files: InputFiles


class _Merged(NamedTuple):
    """What a run gave (see ShardWork.add)."""

    num_elements: int
    sums: list[list[MergeSums]]
    broken: list[str]


class MergePass:
    """One pass over the inputs that writes every shard that an output lacks."""

    def __init__(self, inputs: Inputs, recipe: MergeRecipe, streaming: Streaming) -> None:
        self._target, self._source, self._base = inputs.target, inputs.source, inputs.base
        self._plan, self._recipe, self._streaming = inputs.plan, recipe, streaming
        self.files = inputs.files
        self._rows, self._untied = inputs.rows, inputs.untied
        self._aligned = frozenset[str](() if inputs.plan.identity else inputs.rows)
        self.shards = output_shards(inputs.target, inputs.plan)
        self._scratches = [Scratch() for _ in range(ALPHAS_AT_ONCE)]
        self._entries = {entry.name: entry for shard in self.shards for entry in shard.tensors}

    @property
    def num_parameters(self) -> int:
        """Of the merged model, tied tensors once."""
        aliases = self._target.aliases
        return sum(e.num_elements for name, e in self._entries.items() if name not in aliases)

    def stamp(self, alpha: float) -> str:
        """The identity of an output's weights: what was asked for, and the files they come from."""
        return self.files.deciding_weights().stamp(
            version=_VERSION, alpha=alpha, recipe=self._recipe
        )

    def num_missing_bytes(self, folders: Sequence[OutputFolder]) -> int:
        """Bytes that are still to be written."""
        return sum(
            shard.num_bytes
            for folder in folders
            for shard in self.shards
            if shard.name not in folder.done
        )

    def write(self, alphas: Sequence[float], folders: Sequence[OutputFolder]) -> None:
        """Every shard that an output still lacks."""
        works = [_work(shard, alphas, folders) for shard in self.shards]
        num_all = sum(work.num_elements for work in works)
        works = [work for work in works if work.folders]
        num_done = num_all - sum(work.num_elements for work in works)
        with ExitStack() as stack, Flusher() as flusher:
            sources = self._open(stack)

            def runs() -> Iterator[tuple[ShardWork, Block, Rule]]:
                """Shard after shard, without a pause between them."""
                for work in works:
                    if not work.shard.tensors:
                        work.open(stack)
                        flusher.complete(work)
                    for entry in work.shard.tensors:
                        rule = self._rule(entry, sources)
                        yield from ((work, run, rule) for run in runs_of(entry))

            def merge(item: tuple[ShardWork, Block, Rule]) -> tuple[ShardWork, _Merged]:
                work, run, rule = item
                work.open(stack)
                return work, self._merge_run(run, rule, work, sources)

            threads = self._streaming.threads
            with closing(map_in_order(merge, runs(), threads=threads)) as results:
                for work, merged in results:
                    if work.add(merged.sums, merged.broken):
                        flusher.complete(work)
                    num_done += merged.num_elements
                    self._streaming.progress(num_done, num_all, "parameters")
            flusher.wait()
        self._streaming.progress(num_all, num_all, "parameters")

    def _merge_run(self, run: Block, rule: Rule, work: ShardWork, sources: Sources) -> _Merged:
        """Reads a run once, merges it for every alpha, and writes it."""
        entry = self._entries[run.name]
        offset, dtype = entry.offset + run.start * entry.item_size, RAW_DTYPES[entry.dtype]
        _fetch(run, rule, work.alphas, sources)
        sums: list[list[MergeSums]] = []
        for first in range(0, len(work.alphas), ALPHAS_AT_ONCE):
            alphas = work.alphas[first : first + ALPHAS_AT_ONCE]
            outs = [
                scratch.array(run.num_elements, dtype, offset=offset)
                for scratch in self._scratches[: len(alphas)]
            ]
            sums.extend(_merge_blocks(run, rule, alphas, outs, sources))
            for writer, out in zip(work.writers[first:], outs, strict=False):
                writer.write(entry, run.start, out)
        aligned = run.name in self._aligned
        broken = [_broken(block, sources, aligned=aligned) for block in _bad(run, sums)]
        counted = [] if run.name in self._target.aliases else sums
        return _Merged(run.num_elements, counted, broken)

    def _open(self, stack: ExitStack) -> Sources:
        once = self._recipe.num_reads == 1
        target = stack.enter_context(ShardReader(self._target.shards, once=once))
        base = None
        if self._base is not None:
            base = stack.enter_context(ShardReader(self._base.shards, once=once))
        delta = stack.enter_context(self._source.opened(once=once))

        scratch = Scratch()

        def read_target(block: Block) -> Raw:
            entry = self._target.tensors[block.name]
            if block.name not in self._aligned:
                return target.read_reusing(entry, block.start, block.stop)
            out = scratch.array(block.num_elements, RAW_DTYPES[entry.dtype])
            return gather(target, entry, block, self._plan.target_row, out)

        def read_base(block: Block) -> Raw:
            assert self._base is not None
            assert base is not None
            entry = self._base.tensors[self._base_name(block.name)]
            return base.read_reusing(entry, block.start, block.stop)

        def fetch(block: Block) -> None:
            if block.name in self._aligned:
                return  # its rows lie elsewhere
            target.fetch(self._target.tensors[block.name], block.start, block.stop)
            if self._base is not None and base is not None:
                entry = self._base.tensors[self._base_name(block.name)]
                base.fetch(entry, block.start, block.stop)

        return Sources(
            target=read_target,
            base=read_base if base else None,
            fetch=fetch,
            delta=delta,
            owner=self._owner,
            untied=self._untied,
            special_ids=self._source.tokens.special_ids,
            rows=self._rows,
            threads=self._streaming.threads,
        )

    def _owner(self, name: str) -> str:
        """Its name in the residual."""
        return self._target.aliases.get(name, self._untied.get(name, name))

    def _base_name(self, name: str) -> str:
        assert self._base is not None
        return name if name in self._base.unique_tensors else self._owner(name)

    def _rule(self, entry: TensorEntry, sources: Sources) -> Rule:
        if entry.name not in self._aligned:
            return rule_for(entry, self._recipe, sources)
        means: tuple[Mean, Mean] | None = None
        from_mean = self._recipe.new_token_rows == "base_mean"  # noqa: S105 - no password
        if from_mean and self._plan.instruct_only.any():
            place = Block(entry.name, 0, 0)

            def read(start: int, stop: int) -> Exact:
                return to_float64(sources.target(replace(place, start=start, stop=stop)))

            target_mean = mean_of_rows(read, self._plan.common_rows, width_of(entry))
            means = target_mean, sources.delta.base_mean(self._owner(entry.name))
        return AlignedRule(
            entry=entry,
            owner=self._owner(entry.name),
            plan=self._plan,
            scale=scale_of(sources.scaled_as(entry.name), self._recipe.scales, self._rows),
            moves=self._moving_rows(),
            means=means,
        )

    def _moving_rows(self) -> npt.NDArray[np.bool_]:
        if self._recipe.embedding_rows == "all":
            return np.ones(self._plan.num_rows, dtype=np.bool_)
        special = self._source.tokens.special_ids.values()
        return self._plan.rows_of(special if self._recipe.embedding_rows != "none" else ())


def _work(
    shard: OutputShard, alphas: Sequence[float], folders: Sequence[OutputFolder]
) -> ShardWork:
    """What is left to do for a shard."""
    wanted = zip(alphas, folders, strict=True)
    missing = [(alpha, folder) for alpha, folder in wanted if shard.name not in folder.done]
    return ShardWork(shard, [alpha for alpha, _ in missing], [folder for _, folder in missing])


def _fetch(run: Block, rule: Rule, alphas: Sequence[float], sources: Sources) -> None:
    """Reads what the merge of a run needs, in large pieces."""
    sources.fetch(run)
    if any(rule.reads_residual(alpha) for alpha in alphas):
        sources.delta.fetch(replace(run, name=sources.owner(run.name)))


def _merge_blocks(
    run: Block, rule: Rule, alphas: Sequence[float], outs: Sequence[Raw], sources: Sources
) -> list[list[MergeSums]]:
    """outs = the merged elements of a run for each alpha; for each the sums of the run's blocks. A
    block is merged for all of them while it is in the processor's caches."""
    sums: list[list[MergeSums]] = [[] for _ in alphas]
    for block in parts_of(run):
        part = slice(block.start - run.start, block.stop - run.start)
        for alpha, out, found in zip(alphas, outs, sums, strict=True):
            found.append(rule.merge(block, sources.target(block), alpha, out[part], sources))
    return sums


def _bad(run: Block, found: Sequence[Sequence[MergeSums]]) -> list[Block]:
    """The run's blocks that came out with NaN or Inf for any alpha."""
    return [
        block
        for block, *sums in zip(parts_of(run), *found, strict=True)
        if any(each.num_not_finite for each in sums)
    ]


def _broken(block: Block, sources: Sources, *, aligned: bool) -> str:
    if not bool(np.isfinite(to_float64(sources.target(block))).all()):
        return f"{block.name}: NaN or Inf in target"
    if aligned:
        return f"{block.name}: NaN or Inf in residual, or a result that its dtype cannot hold"
    owner = Block(sources.owner(block.name), block.start, block.stop)
    read = dict(sources.delta.by_role(owner))
    if sources.base is not None:
        read["the target's base"] = sources.base(block)
    for role, found in read.items():
        if not bool(np.isfinite(to_float64(found)).all()):
            return f"{block.name}: NaN or Inf in {role}"
    return f"{block.name}: target + alpha * residual is larger than its dtype can hold"
