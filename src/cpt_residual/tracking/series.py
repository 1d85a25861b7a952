"""Metric series as JSON lines, flushed after every row."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

Row = dict[str, float | int]


def series_path(run_dir: Path, node: str) -> Path:
    """`run_dir/series/<node>.jsonl`, with `:` and `/` made harmless."""
    return run_dir / "series" / f"{node.replace(':', '.').replace('/', '.')}.jsonl"


def read_series(path: Path) -> list[Row]:
    """All complete rows; a line cut off by a kill ends the file."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            rows.append(cast("Row", json.loads(line)))
    return rows


class SeriesSink:
    """Appends rows {"step", "tokens", ...}. Steps in the file strictly increase: a step at or
    before the last one (a resume from an older checkpoint) first cuts the file back to before
    it; a second row of the last step is merged into it.

    Every row is flushed to the operating system, so a killed process loses nothing that was
    logged; a line torn by a crash of the machine is cut off when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._ends: list[tuple[int, int]] = []  # (step, offset where its row starts)
        self._last: Row = {}
        self._file: BinaryIO = path.open("a+b")
        self._load()

    def log(self, values: Mapping[str, float], *, tokens: int, step: int) -> None:
        row: Row = {"step": step, "tokens": tokens, **{k: values[k] for k in sorted(values)}}
        if self._ends and step == self._ends[-1][0]:
            row = self._last | row
        while self._ends and self._ends[-1][0] >= step:
            self._cut(self._ends.pop()[1])
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self._ends.append((step, start))
        self._last = row

    def close(self) -> None:
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        offset = 0
        for line in self._file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                self._cut(offset)
                break
            self._last = cast("Row", json.loads(line))
            self._ends.append((int(self._last["step"]), offset))
            offset += len(line)

    def _cut(self, offset: int) -> None:
        self._file.truncate(offset)
