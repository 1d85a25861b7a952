"""The rounds of `data.py`: whole processes one at a time, in turn, their output removed between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contenders import Contender

PROBE = Path(__file__).with_name("data_probe.py")
_MILLION = 1e6


class RunError(Exception):
    """A command ended with an error; the text holds the end of its output."""


@dataclass(frozen=True)
class Run:
    """What one process took. `seconds`: of the work alone, as its program says; `tokens`: those
    that it wrote; memory: of the process and all its children, as `data_probe` says."""

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_bytes: int
    anonymous_bytes: int
    tokens: int
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


Runs = dict[str, list[Run]]
"""Runs of each contender, one a round."""


class Bench:
    """Runs contenders below `scratch` and tells what it does to `say`.

    A peer that fails is left out from then on, with the reason in `failed`; when ours or the limit
    fails, RunError ends the benchmark.
    """

    def __init__(self, scratch: Path, say: Callable[[str], None]) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.say = say
        self.failed: dict[str, str] = {}
        self.chosen: dict[str, str] = {}
        self.tried: dict[str, dict[str, float]] = {}
        self.budgets: dict[str, int] = {}

    def choose(self, contenders: Sequence[Contender], corpus: str, documents: int) -> None:
        """Find the fastest setting of every contender that has several; count the tokens."""
        for contender in contenders:
            self.chosen[contender.name] = next(iter(contender.settings))
            seconds: dict[str, float] = {}
            for setting in contender.settings if len(contender.settings) > 1 else ():
                run = self._try(contender, setting, corpus, documents)
                if run is not None:
                    seconds[setting] = run.seconds
            if seconds:
                self.tried[contender.name] = seconds
                self.chosen[contender.name] = min(seconds, key=lambda name: seconds[name])

    def rounds(
        self, contenders: Sequence[Contender], corpus: str, *, documents: int, num: int
    ) -> Runs:
        """`num` rounds, every other one backwards; the limit comes first in the first one."""
        found: Runs = {contender.name: [] for contender in contenders}
        for number in range(num):
            self.say(f"{corpus}: round {number + 1} of {num}")
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                run = self._try(contender, self.chosen[contender.name], corpus, documents)
                if run is not None:
                    found[contender.name].append(run)
        return {name: runs for name, runs in found.items() if runs and name not in self.failed}

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _try(self, contender: Contender, setting: str, corpus: str, documents: int) -> Run | None:
        if contender.name in self.failed:
            return None
        out = self.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        os.sync()
        budget = self.budgets.get(corpus, 0)
        try:
            run = _run(contender.settings[setting](corpus, budget, out), out, self.scratch)
        except RunError as error:
            if contender.kind != "peer":
                raise
            self.failed[contender.name] = str(error)
            self.say(f"{contender.name} failed and is left out: {error}")
            return None
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if contender.kind == "limit":
            self.budgets[corpus] = run.tokens + documents  # with an EOS each
        rate = run.tokens / run.seconds / _MILLION
        self.say(
            f"{corpus:6} {contender.name:18} {run.seconds:7.2f} s {rate:6.2f} M tokens/s"
            f" {run.peak_bytes / 2**20:7,.0f} MiB  {setting}"
        )
        return run


def _run(command: Sequence[str], out: Path, scratch: Path) -> Run:
    report, log = scratch / "probe.json", scratch / "output.txt"
    report.unlink(missing_ok=True)
    probe = [sys.executable, "-I", "-S", str(PROBE), str(report), str(log), *command]
    done = subprocess.run(probe, check=False)
    found = json.loads(report.read_text()) if report.is_file() else {"exit_status": done.returncode}
    if found["exit_status"] != 0:
        lines = log.read_text(errors="replace").splitlines()[-25:]
        raise RunError(
            f"exit status {found['exit_status']}: {' '.join(command)}\n" + "\n".join(lines)
        )
    own = json.loads((out / "report.json").read_text())
    return Run(
        seconds=own.pop("seconds"),
        process_seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
        peak_bytes=found["peak_bytes"],
        anonymous_bytes=found["anonymous_bytes"],
        tokens=own.pop("tokens"),
        more=own,
    )
