"""A pack as a data set of the Hugging Face libraries, for other trainers.

One record a row: `input_ids`, `position_ids` and `labels` (int32, all of sequence_length) as
`PackView.row` gives them, and `source`, the number of the row's source in `pack.json`, which lies
beside. Constant memory.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from cpt_residual.core.disk import check_free_space, writing
from cpt_residual.core.files import (
    copy_files,
    remove_tree,
    replacing,
    sync_directory,
    sync_tree,
)
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import ProgressReport, no_progress
from cpt_residual.data.documents.manifest import read_manifest
from cpt_residual.data.packing.pack_format import (
    SOURCES_FILE,
    PackView,
    hashed_bytes,
    open_pack,
)
from cpt_residual.data.packing.pack_ledger import LEDGER_FILE
from cpt_residual.errors import ConfigError, CorruptArtifactError

# Neither library is typed well enough; this is the one place here that calls them.
_arrow = cast("Any", importlib.import_module("pyarrow"))
_parquet = cast("Any", importlib.import_module("pyarrow.parquet"))

ExportLayout = Literal["parquet", "hf"]
"""parquet: `datasets.load_dataset(folder)`; hf: `datasets.load_from_disk(folder)`."""

_BYTES_PER_TOKEN = {"parquet": 12, "hf": 24}  # at most; hf: once more while it is made
_TOKENS_AT_ONCE = 1 << 18
_TABLES_PER_FILE = 256
_COLUMNS = ("input_ids", "position_ids", "labels")

_PARQUET_HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
"""

_CARD = """# Packed rows for causal language model training

{rows:,} rows of {length:,} tokens: {tokens:,} training tokens, {padding:,} of padding. Rows are in
training order: do not shuffle them, or budgets and phases lose their meaning. `pack.json` says
where every token is from. To read it: `{how}`.

Several documents share a row. Positions restart at each, and a label is -100 where no loss is
wanted (first tokens of documents and of parts of documents, prompts, padding). The label of a token
is the token itself; models of transformers shift. Give a model `input_ids`, `position_ids` and
`labels`, no attention mask, and `use_cache=False`: an attention mask, even one of ones only, lets
attention pass from one document to the next.
"""


def export_pack(
    pack: Path,
    out: Path,
    *,
    layout: ExportLayout = "parquet",
    progress: ProgressReport = no_progress,
) -> int:
    """Write the pack in directory `pack` as a data set to the new directory `out`.

    Returns the number of rows. `out` appears whole or not at all, also after a power cut. Raises
    ConfigError when it exists, CorruptArtifactError when a row is not what was packed,
    DiskSpaceError and ArtifactError when it cannot be written, and what `open_pack` raises.
    """
    view = open_pack(pack)
    _require_books(view)
    if out.exists():
        raise ConfigError(
            f"{out} exists",
            remedy="Nothing was written. Name a folder that does not exist.",
        )
    check_free_space(out, _BYTES_PER_TOKEN[layout] * view.ids.size)
    with writing(out):
        with replacing(out) as temporary:
            if layout == "parquet":
                _write_parquet(view, temporary, progress)
            else:
                _write_hf(view, temporary, progress)
            (temporary / "README.md").write_text(_card(view, layout), encoding="utf-8")
            copy_files(pack, temporary, leave_out=_not_the_ledger(pack))
            sync_tree(temporary)
        sync_directory(out.parent)
    return len(view)


def _require_books(view: PackView) -> None:
    """Raise CorruptArtifactError unless `pack.json` and `sources.npy` are those that were packed,
    as far as a manifest lies beside, and every row has a source. The rows' own hash is for ids and
    flags."""
    problems: list[str] = []
    manifest = read_manifest(view.path)
    if manifest is not None:
        for name in (LEDGER_FILE, SOURCES_FILE):
            recorded, found = manifest.files.get(name), file_sha256(view.path / name)
            if recorded is None or recorded.sha256 != found:
                problems.append(f"{name}: sha256 {found[:16]}, not what the manifest says")
    num_sources = len(view.ledger.sources)
    if len(view) and int(view.row_sources.max()) >= num_sources:
        problems.append(f"{SOURCES_FILE}: a row of a source beyond the {num_sources} of the ledger")
    if problems:
        raise CorruptArtifactError(
            f"pack {view.path} is damaged",
            problems=problems,
            remedy="Nothing was exported. Delete the artifact and run again; it will be rebuilt.",
        )


def _not_the_ledger(pack: Path) -> tuple[str, ...]:
    return tuple(path.name for path in pack.iterdir() if path.name != "pack.json")


def _schema(length: int) -> Any:
    rows = _arrow.list_(_arrow.int32(), length)
    return _arrow.schema([*((name, rows) for name in _COLUMNS), ("source", _arrow.int32())])


def _rows_at_once(view: PackView) -> int:
    return max(_TOKENS_AT_ONCE // view.sequence_length, 1)


def _tables(view: PackView, progress: ProgressReport) -> Iterator[Any]:
    """The rows in order, some at a time. Raises CorruptArtifactError at the end unless they are
    those that were packed."""
    length, schema = view.sequence_length, _schema(view.sequence_length)
    step, digest = _rows_at_once(view), hashlib.sha256()
    for first in range(0, len(view), step):
        last = min(first + step, len(view))
        digest.update(hashed_bytes(view.ids[first:last], view.flags[first:last]))
        rows = [view.row(number) for number in range(first, last)]
        arrays = [
            _arrow.FixedSizeListArray.from_arrays(
                _arrow.array(np.concatenate(column).astype(np.int32)), length
            )
            for column in zip(*rows, strict=True)
        ]
        sources = np.asarray(view.row_sources[first:last]).astype(np.int32)
        yield _arrow.Table.from_arrays([*arrays, _arrow.array(sources)], schema=schema)
        view.let_go()
        progress(last, len(view), "rows")
    if (found := digest.hexdigest()) != view.ledger.rows_sha256:
        raise CorruptArtifactError(
            f"pack {view.path} is damaged",
            problems=[f"sha256 of the rows: {found[:16]}, not {view.ledger.rows_sha256[:16]}"],
            remedy="Delete the artifact and run again; it will be rebuilt.",
        )


def _card(view: PackView, layout: ExportLayout) -> str:
    """What the rows are and how to use them, for README.md."""
    load = {"parquet": "datasets.load_dataset", "hf": "datasets.load_from_disk"}[layout]
    text = _CARD.format(
        rows=len(view),
        length=view.sequence_length,
        tokens=view.ledger.tokens,
        padding=view.ledger.padding,
        how=f'{load}("FOLDER")',
    )
    return _PARQUET_HEAD + text if layout == "parquet" else text


def _write_parquet(view: PackView, out: Path, progress: ProgressReport) -> None:
    (out / "data").mkdir(parents=True)
    num_files = -(-len(view) // (_TABLES_PER_FILE * _rows_at_once(view)))
    schema, tables = _schema(view.sequence_length), _tables(view, progress)
    for number in range(num_files):
        name = f"train-{number:05}-of-{num_files:05}.parquet"
        with _parquet.ParquetWriter(out / "data" / name, schema) as writer:
            for table in islice(tables, _TABLES_PER_FILE):
                writer.write_table(table)
    left_over = next(tables, None)  # the end, where the rows are checked
    assert left_over is None, "all rows are in a file"


def _write_hf(view: PackView, out: Path, progress: ProgressReport) -> None:
    library = cast("Any", importlib.import_module("datasets"))
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    file = str(scratch / "rows.arrow")
    schema = _schema(view.sequence_length)
    with _arrow.OSFile(file, "wb") as sink, _arrow.ipc.new_stream(sink, schema) as writer:
        for table in _tables(view, progress):
            writer.write_table(table)
    library.Dataset.from_file(file).save_to_disk(str(out))
    remove_tree(scratch, out)
