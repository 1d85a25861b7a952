"""Measured cost of a build: wall time, peak memory, hardware."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cpt_residual.core.artifact import FileStamp, Receipt
from cpt_residual.core.run_record import code_version, library_versions


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Stopwatch:
    """Starts when made. Memory is the peak of the process so far: in a worker that builds many
    stages it is an upper bound for the later ones."""

    threads: int
    started: str = field(init=False, default_factory=_now)
    _begin: float = field(init=False, default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def receipt(self, stamps: Mapping[str, FileStamp]) -> Receipt:
        """The receipt of what was built since the start."""
        return Receipt(
            started=self.started,
            seconds=round(self.seconds, 3),
            host=socket.gethostname(),
            pid=os.getpid(),
            cores=usable_cores(),
            threads=self.threads,
            peak_rss_bytes=_max_rss_bytes(resource.RUSAGE_SELF),
            peak_rss_bytes_child=_max_rss_bytes(resource.RUSAGE_CHILDREN),
            code_version=code_version(),
            libraries=library_versions(),
            stamps=dict(stamps),
        )


def usable_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _max_rss_bytes(who: int) -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit
