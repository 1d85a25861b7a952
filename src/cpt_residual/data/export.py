"""A pack as a data set of the Hugging Face libraries, for other trainers.

One record a row: `input_ids`, `position_ids` and `labels` (int32, all of sequence_length) as
`PackView.row` gives them, and `source`, the number of the row's source in `pack.json`, which lies
beside. Constant memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from cpt_residual.core.files import copy_files, remove_tree, unique_name
from cpt_residual.core.stage import ProgressReport, no_progress
from cpt_residual.data.pack_format import PackView, open_pack
from cpt_residual.errors import ConfigError

__all__ = ["ExportLayout", "export_pack"]

# Neither library is typed well enough; this is the one place here that calls them.
_arrow = cast("Any", importlib.import_module("pyarrow"))
_parquet = cast("Any", importlib.import_module("pyarrow.parquet"))

ExportLayout = Literal["parquet", "hf"]
"""parquet: `datasets.load_dataset(folder)`; hf: `datasets.load_from_disk(folder)`."""

_TOKENS_AT_ONCE = 1 << 18
_TABLES_PER_FILE = 256
_COLUMNS = ("input_ids", "position_ids", "labels")

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
# Packed rows for causal language model training

{rows:,} rows of {length:,} tokens: {tokens:,} training tokens, {padding:,} of padding. Rows are in
training order: do not shuffle them, or budgets and phases lose their meaning. `pack.json` says
where every token is from.

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

    Returns the number of rows. `out` appears whole or not at all. Raises ConfigError when it
    exists, and what `open_pack` raises.
    """
    view = open_pack(pack)
    if out.exists():
        raise ConfigError(
            f"{out} exists",
            remedy="Nothing was written. Name a folder that does not exist.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(unique_name(f".{out.name}"))
    try:
        if layout == "parquet":
            _write_parquet(view, temporary, progress)
        else:
            _write_hf(view, temporary, progress)
        copy_files(pack, temporary, leave_out=_not_the_ledger(pack))
        temporary.rename(out)
    except BaseException:
        remove_tree(temporary, temporary.parent)
        raise
    return len(view)


def _not_the_ledger(pack: Path) -> tuple[str, ...]:
    return tuple(path.name for path in pack.iterdir() if path.name != "pack.json")


def _schema(length: int) -> Any:
    rows = _arrow.list_(_arrow.int32(), length)
    return _arrow.schema([*((name, rows) for name in _COLUMNS), ("source", _arrow.int32())])


def _rows_at_once(view: PackView) -> int:
    return max(_TOKENS_AT_ONCE // view.sequence_length, 1)


def _tables(view: PackView, progress: ProgressReport) -> Iterator[Any]:
    """The rows in order, some at a time."""
    length, schema = view.sequence_length, _schema(view.sequence_length)
    step = _rows_at_once(view)
    for first in range(0, len(view), step):
        last = min(first + step, len(view))
        rows = [view.row(number) for number in range(first, last)]
        arrays = [
            _arrow.FixedSizeListArray.from_arrays(
                _arrow.array(np.concatenate(column).astype(np.int32)), length
            )
            for column in zip(*rows, strict=True)
        ]
        sources = np.asarray(view.row_sources[first:last]).astype(np.int32)
        yield _arrow.Table.from_arrays([*arrays, _arrow.array(sources)], schema=schema)
        progress(last, len(view), "rows")


def _write_parquet(view: PackView, out: Path, progress: ProgressReport) -> None:
    (out / "data").mkdir(parents=True)
    rows_per_file = _TABLES_PER_FILE * _rows_at_once(view)
    num_files = -(-len(view) // rows_per_file)
    writer: Any = None
    number = in_file = 0
    for table in _tables(view, progress):
        if writer is None:
            name = f"train-{number:05}-of-{num_files:05}.parquet"
            writer = _parquet.ParquetWriter(out / "data" / name, table.schema)
        writer.write_table(table)
        in_file += len(table)
        if in_file >= rows_per_file:
            writer.close()
            writer, number, in_file = None, number + 1, 0
    if writer is not None:
        writer.close()
    ledger = view.ledger
    card = _CARD.format(
        rows=len(view), length=view.sequence_length, tokens=ledger.tokens, padding=ledger.padding
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def _write_hf(view: PackView, out: Path, progress: ProgressReport) -> None:
    library = cast("Any", importlib.import_module("datasets"))
    scratch = out / "scratch"
    _write_parquet(view, scratch, progress)
    files = [str(file) for file in sorted((scratch / "data").iterdir())]
    library.Dataset.from_parquet(files, cache_dir=str(scratch)).save_to_disk(str(out))
    remove_tree(scratch, out)
