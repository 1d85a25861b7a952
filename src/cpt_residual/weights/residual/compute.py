"""theta_instruct - theta_base, streamed to disk and proven while it is written.

Guarantee with fp32 storage: residual + corrections is the exact difference, so base + residual,
rounded once, is instruct bit for bit in every tensor of any dtype, and every merge rounds the true
sum. bf16 storage states its measured error. (Factors of low rank: `factored`.) Price: reads both
models twice (once for their sha256) and the output once, writes 4 bytes per parameter (bf16: 2),
memory of a few blocks per thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cpt_residual.config.merging import EXACT_STORAGE, Storage, VocabPolicy
from cpt_residual.core.disk import check_free_space
from cpt_residual.core.files import write_json_atomic
from cpt_residual.modeling.token_side import TokenSide, token_map_hash
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.direct import Scratch
from cpt_residual.weights.io.file_hash import file_sha256
from cpt_residual.weights.io.output_dir import fresh_directory
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    FETCHED,
    Block,
    Streaming,
    blocks_of,
    map_in_order,
    parts_of,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.io.shard_header import TensorEntry
from cpt_residual.weights.io.writer import ShardWriter, layout
from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.arithmetic import RAW_DTYPES, Corrections
from cpt_residual.weights.maths.dtypes import DtypeName
from cpt_residual.weights.maths.subtraction import Tally, store_exactly, store_rounded
from cpt_residual.weights.residual.low_rank_storage import Factored, factor_matrices, remove_scratch
from cpt_residual.weights.residual.open_delta import OpenPair
from cpt_residual.weights.residual.residual_format import (
    BASE_MEAN,
    INSTRUCT_FOLDER,
    MANIFEST_FILE,
    CorrectionsWriter,
    ModelRecord,
    ResidualManifest,
    TensorRecord,
    stored_as,
)
from cpt_residual.weights.residual.source import PairDelta
from cpt_residual.weights.tokens.chat_contract import copy_instruct_side, eos_token_ids, eos_tokens
from cpt_residual.weights.tokens.matching import notes_on


def compute(
    base: Checkpoint,
    instruct: Checkpoint,
    out: Path,
    *,
    storage: Storage = EXACT_STORAGE,
    vocab_policy: VocabPolicy = "equal",
    streaming: Streaming = DEFAULT_STREAMING,
) -> ResidualManifest:
    """Writes the residual directory `out` (see residual_format) and returns its manifest.

    Raises CompatibilityError for models that do not belong together, by architecture, shapes or
    tokens, or hold NaN or Inf; ArtifactError for an `out` that exists, or is or lies in one of
    them. `out` is then untouched.
    """
    delta = PairDelta(base, instruct, vocab_policy)
    base, instruct = delta.base, delta.instruct
    for checkpoint in (base, instruct):
        require_equal_aliases(checkpoint, threads=streaming.threads)
    records = _model_records(delta, streaming.threads)
    with fresh_directory(out, inputs=(base.path, instruct.path)) as folder, ExitStack() as stack:
        item_size = 2 if storage.dtype == "bf16" else 4
        check_free_space(folder, item_size * instruct.num_parameters)
        pair = stack.enter_context(delta.opened())
        tensors = _write_tensors(pair, folder, storage, streaming=streaming)
        left_out = copy_instruct_side(instruct.path, folder / INSTRUCT_FOLDER)
        total = Tally.total(tally for tally, _ in tensors.values())
        manifest = ResidualManifest(
            storage=storage,
            facts=instruct.facts,
            token_map_hash=token_map_hash(delta.tokens),
            num_parameters=instruct.num_parameters,
            base=records[0],
            instruct=records[1],
            tied=dict(instruct.aliases),
            base_norm=math.sqrt(total.base_squared),
            instruct_norm=math.sqrt(total.instruct_squared),
            residual_norm=math.sqrt(total.residual_squared),
            cosine_base_residual=arithmetic.cosine(
                total.base_dot_residual, total.base_squared, total.residual_squared
            ),
            bit_exact=total.bit_exact,
            num_rounded=total.num_rounded,
            max_ulps=total.max_ulps,
            num_zero_signs=total.num_zero_signs,
            num_wrong=total.num_wrong,
            relative_error=total.relative_error,
            instruct_only=list(delta.instruct_only),
            notes=[*notes_on(delta.base, carried=False), *notes_on(instruct, carried=False)],
            files=_file_hashes(folder, streaming.threads),
            left_out=left_out,
            tensors={name: record for name, (_, record) in tensors.items()},
        )
        write_json_atomic(folder / MANIFEST_FILE, manifest)
    return manifest


def _model_records(delta: PairDelta, threads: int) -> list[ModelRecord]:
    """Of base and instruct."""
    sides = (delta.base, delta.base_tokens), (delta.instruct, delta.tokens)
    return [_model_record(model, tokens, delta, threads) for model, tokens in sides]


def _model_record(
    model: Checkpoint, tokens: TokenSide, delta: PairDelta, threads: int
) -> ModelRecord:
    hashes = map_in_order(lambda shard: file_sha256(shard.path), model.shards, threads=threads)
    return ModelRecord(
        shards=dict(zip((shard.name for shard in model.shards), hashes, strict=True)),
        eos_token_ids=eos_token_ids(model.path, tokens),
        eos_tokens=None if delta.plan.identity else eos_tokens(model.path, tokens),
    )


def _file_hashes(folder: Path, threads: int) -> dict[str, str]:
    """sha256 of the files that hold numbers, as the disk gives them back."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    hashes = map_in_order(lambda name: file_sha256(folder / name), names, threads=threads)
    return dict(zip(names, hashes, strict=True))


def _write_tensors(
    pair: OpenPair, folder: Path, storage: Storage, *, streaming: Streaming
) -> dict[str, tuple[Tally, TensorRecord]]:
    """All shards of the residual; returns each tensor's sums and record."""
    rule = storage.low_rank
    factored = factor_matrices(pair, folder, rule, streaming=streaming) if rule else {}
    records = _planned_records(pair, storage, factored)
    tallies = {name: Tally() for name in records}
    starts: dict[str, int] = {}
    num_done, num_all = 0, pair.instruct.num_parameters
    with ExitStack() as stack:
        means = pair.aligned if pair.plan.instruct_only else frozenset[str]()
        places = _open_writers(records, folder, stack, means=means)
        if means:
            _write_means(pair, places)
        for name, factors in factored.items():
            factors.copy_to(name, places)
            tallies[name] = factors.tally
            num_done += pair.instruct.tensors[name].num_elements
        remove_scratch(folder)
        corrections = stack.enter_context(CorrectionsWriter(folder))

        scratch = Scratch()

        def subtract(run: Block) -> tuple[Block, list[tuple[Block, Tally, Corrections]]]:
            writer, entry = places[run.name]
            pair.fetch(run)
            offset = entry.offset + run.start * entry.item_size
            out = scratch.array(run.num_elements, RAW_DTYPES[entry.dtype], offset=offset)
            store = store_exactly if entry.dtype == "F32" else store_rounded
            found: list[tuple[Block, Tally, Corrections]] = []
            for block in parts_of(run):
                base, instruct = pair.read(block)
                stored = out[block.start - run.start : block.stop - run.start]
                dtype = pair.instruct.tensors[block.name].dtype
                found.append((block, *store(base, instruct, dtype, stored)))
            writer.write(entry, run.start, out)
            return run, found

        whole = (entry for entry in _in_file_order(pair.instruct) if entry.name not in factored)
        for run, found in map_in_order(
            subtract, blocks_of(whole, FETCHED), threads=streaming.threads
        ):
            starts.setdefault(run.name, corrections.count)
            for block, tally, remainder in found:
                corrections.append(remainder, offset=block.start)
                tallies[run.name].add(tally)
            num_done += run.num_elements
            streaming.progress(num_done, num_all, "parameters")
        corrections.finish()
        for writer in {id(writer): writer for writer, _ in places.values()}.values():
            writer.flush()
    require_finite(line for name, tally in tallies.items() for line in tally.broken(name))
    return {
        name: (tally, _with_proof(records[name], tally, starts.get(name, 0)))
        for name, tally in tallies.items()
    }


def _planned_records(
    pair: OpenPair, storage: Storage, factored: Mapping[str, Factored]
) -> dict[str, TensorRecord]:
    """Where each tensor will lie, in instruct's shard layout; norms and proofs are still zero."""
    kept = [
        [e for e in pair.instruct.entries_of(shard) if e.name not in pair.instruct.aliases]
        for shard in pair.instruct.shards
    ]
    kept = [entries for entries in kept if entries]
    return {
        entry.name: TensorRecord(
            shard=f"residual-{number:05d}-of-{len(kept):05d}.safetensors",
            shape=entry.shape,
            base_dtype=pair.base.tensors[entry.name].dtype,
            instruct_dtype=entry.dtype,
            base_norm=0.0,
            instruct_norm=0.0,
            residual_norm=0.0,
            bit_exact=False,
            num_rounded=0,
            max_ulps=0,
            num_zero_signs=0,
            corrections_start=0,
            dtype="BF16" if storage.dtype == "bf16" and entry.name not in factored else "F32",
            rank=factored[entry.name].rank if entry.name in factored else None,
        )
        for number, entries in enumerate(kept, start=1)
        for entry in entries
    }


def _open_writers(
    records: Mapping[str, TensorRecord], folder: Path, stack: ExitStack, *, means: Collection[str]
) -> dict[str, tuple[ShardWriter, TensorEntry]]:
    """One reserved shard per shard of instruct; where each stored tensor goes."""
    places: dict[str, tuple[ShardWriter, TensorEntry]] = {}
    shards: dict[str, list[tuple[str, DtypeName, tuple[int, ...]]]] = {}
    for name, record in records.items():
        for stored, (shard, dtype, shape) in stored_as(name, record, with_mean=name in means):
            shards.setdefault(shard, []).append((stored, dtype, shape))
    for shard, tensors in shards.items():
        header, placed = layout(shard, tensors, {"format": "pt"})
        num_bytes = len(header) + sum(entry.num_bytes for entry in placed)
        writer = ShardWriter(folder / shard, header=header, num_bytes=num_bytes)
        stack.enter_context(writer)
        places.update({entry.name: (writer, entry) for entry in placed})
    return places


def _write_means(pair: OpenPair, places: Mapping[str, tuple[ShardWriter, TensorEntry]]) -> None:
    for name, (writer, entry) in places.items():
        if name.endswith(BASE_MEAN):
            mean = pair.base_mean(name.removesuffix(BASE_MEAN))
            writer.write(entry, 0, mean.astype(np.float32))


def _in_file_order(model: Checkpoint) -> Iterator[TensorEntry]:
    for shard in model.shards:
        yield from (entry for entry in model.entries_of(shard) if entry.name not in model.aliases)


def _with_proof(record: TensorRecord, tally: Tally, start: int) -> TensorRecord:
    return record.model_copy(
        update={
            "base_norm": math.sqrt(tally.base_squared),
            "instruct_norm": math.sqrt(tally.instruct_squared),
            "residual_norm": math.sqrt(tally.residual_squared),
            "bit_exact": tally.bit_exact,
            "num_rounded": tally.num_rounded,
            "max_ulps": tally.max_ulps,
            "num_zero_signs": tally.num_zero_signs,
            "corrections_start": start,
            "relative_error": tally.relative_error,
        }
    )
