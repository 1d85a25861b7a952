"""Read what an offline W&B run has logged, from its transaction log (wandb 0.31).

Format: 7 bytes of header, then a LevelDB log in blocks of 32 KiB (the header belongs to the first):
records [crc32][length u16][type u8][data], type 1 whole, 2 first, 3 middle, 4 last part.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32 * 1024, 7


@dataclass
class OfflineRun:
    """The parts of a run that tests look at."""

    run_id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline_run(folder: Path) -> OfflineRun:
    """The run in `offline-run-*`."""
    (log,) = folder.glob("*.wandb")
    run = OfflineRun()
    for record in _records(log.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                given = record.run
                run.run_id, run.project, run.name = given.run_id, given.project, given.display_name
                run.group, run.job_type = given.run_group, given.job_type
                run.config.update(_items(given.config.update))
            case "config":
                run.config.update(_items(record.config.update))
            case "history":
                run.history.append(_items(record.history.item))
            case "summary":
                run.summary.update(_items(record.summary.update))
            case "metric":
                name = record.metric.name or record.metric.glob_name
                run.x_axes[name] = record.metric.step_metric
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _records(content: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    position, parts = _HEADER, b""
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + _HEADER])
        if kind == 0:
            return
        data = content[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        found["/".join(keys)] = json.loads(item.value_json)
    return found
