"""The rounds of `weights.py`: every contender in turn, again and again, outputs removed between."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from weights_contenders import Contender, Stored, fresh
from weights_measure import Run, RunError, available_bytes, evict, folder_bytes, load, run

State = Literal["cold", "warm"]
Look = Callable[[Contender, Path], None]
"""Is shown a contender's output before that is removed."""
_ROOM = 1.2  # a warm cache needs the inputs' bytes in memory, and something beside


class Bench:
    """Runs contenders below `scratch` and tells what it does to `say`.

    A peer that fails is left out from then on, with the reason in `failed`; if ours or a copy
    fails, RunError ends the benchmark.
    """

    def __init__(self, scratch: Path, say: Callable[[str], None]) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.say = say
        self.failed: dict[str, str] = {}
        self.chosen: dict[State, dict[str, str]] = {"cold": {}, "warm": {}}
        self.tried: dict[State, dict[str, dict[str, list[float]]]] = {"cold": {}, "warm": {}}

    def prepare(self, stored: Sequence[Stored]) -> None:
        """Computes the residuals that contenders read. They are on the disk afterwards."""
        for item in stored:
            self.say(f"computing the residual of {item.folder.name}, to be applied later")
            command = item.compute(fresh(item.folder))
            try:
                run(command, out=item.folder, scratch=self.scratch, reads=())
            except RunError as error:
                if item.folder.name == "ours":
                    raise
                self.say(str(error))  # those that read it will fail, and are left out
        os.sync()

    def once(
        self, contender: Contender, setting: str, state: State, *, look: Look | None = None
    ) -> Run:
        """One measured run from a settled disk and the wanted state of the page cache."""
        out = fresh(self.scratch / "out")
        os.sync()
        if state == "cold":
            evict(contender.reads)
        else:
            evict(self._unneeded(contender))
            load(contender.reads)
        try:
            command = contender.settings[setting](out)
            found = run(command, out=out, scratch=self.scratch, reads=contender.reads)
            if look is not None:
                look(contender, out)
        finally:
            fresh(out)
        self.say(
            f"{state:4}  {contender.name:22} {found.seconds:7.2f} s"
            f" {found.peak_bytes / 2**30:6.2f} GiB  {setting}"
        )
        return found

    def every_setting(self, contenders: Sequence[Contender]) -> None:
        """Each once, to have byte code, compiled kernels and libraries in the caches."""
        for contender in contenders:
            for setting in contender.settings:
                self._try(contender, setting, "warm")

    def choose(self, contenders: Sequence[Contender], state: State, *, num_tries: int) -> None:
        """Finds the fastest setting of every contender that has several, in alternated tries."""
        for contender in contenders:
            settings = list(contender.settings)
            times: dict[str, list[float]] = {setting: [] for setting in settings}
            if len(settings) > 1:
                for number in range(num_tries):
                    for setting in settings if number % 2 == 0 else reversed(settings):
                        found = self._try(contender, setting, state)
                        times[setting] += [] if found is None else [found.seconds]
                self.tried[state][contender.name] = times
                settings = [setting for setting in settings if times[setting]]
            if settings:
                best = min(settings, key=lambda setting: median(times[setting] or [0.0]))
                self.chosen[state][contender.name] = best

    def rounds(
        self, contenders: Sequence[Contender], state: State, *, num: int, look: Look | None = None
    ) -> dict[str, list[Run]]:
        """`num` rounds over all contenders, every other one backwards; `look` sees the first."""
        found: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
        for number in range(num):
            self.say(f"{state}  round {number + 1} of {num}")
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                setting = self.chosen[state].get(contender.name, "")
                seen = self._try(contender, setting, state, look=None if number else look)
                if seen is not None:
                    found[contender.name].append(seen)
            self._save(state, found)
        return {name: runs for name, runs in found.items() if name not in self.failed}

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _unneeded(self, contender: Contender) -> list[Path]:
        """Stored residuals that this contender does not read, to have room for what it reads."""
        folders = (path for path in self.scratch.iterdir() if path.is_dir())
        return [folder for folder in folders if folder not in contender.reads]

    def _try(
        self, contender: Contender, setting: str, state: State, *, look: Look | None = None
    ) -> Run | None:
        if contender.name in self.failed:
            return None
        try:
            return self.once(contender, setting, state, look=look)
        except RunError as error:
            if contender.kind != "peer":
                raise
            self.failed[contender.name] = str(error)
            self.say(f"{contender.name} failed and is left out: {error}")
            return None

    def _save(self, state: State, found: Mapping[str, Sequence[Run]]) -> None:
        raw = {name: [asdict(item) for item in runs] for name, runs in found.items()}
        path = self.scratch.parent / f"rounds_{state}.json"  # stays if a later run fails
        path.write_text(json.dumps(raw, indent=1) + "\n")


def warm_is_possible(contenders: Sequence[Contender]) -> bool:
    """Whether the inputs of every contender fit into the memory that is free."""
    largest = max(sum(map(folder_bytes, contender.reads)) for contender in contenders)
    return available_bytes() >= _ROOM * largest


def reached(runs: Mapping[str, Sequence[Run]], state: State) -> dict[str, Any]:
    """Whether the page cache was as wanted at the start of every run: below 1 % of the inputs'
    pages in it when cold, above 99 % when warm."""
    shares = [item.resident_before for items in runs.values() for item in items]
    least, most = min(shares), max(shares)
    return {
        "least_resident": least,
        "most_resident": most,
        "as_wanted": most < 0.01 if state == "cold" else least > 0.99,
    }
