"""The harness of the benchmarks: alternated rounds of whole processes, medians, goals, a figure.

A benchmark lists contenders (`Contender`), runs them (`Bench`), and hands its result to `finish`,
which adds machine, versions and code, and keeps it in `results/` if it is the full run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cpt_residual.core.run_record import code_version, git_state, library_versions

HERE = Path(__file__).absolute().parent
RESULTS = HERE / "results"
_MEASURED = ("seconds", "process_seconds", "cpu_seconds", "peak_bytes", "anonymous_bytes")
_LIKE_A_USER = ("env", "-u", "PYTHONDONTWRITEBYTECODE")  # no program compiles itself every time
_STARTED = time.monotonic()

Command = Callable[[Path], list[str]]
"""From the output folder to the arguments. A command that writes `report.json` beside that folder
states the `seconds` of its work alone, and whatever else is to be kept."""


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3}:{seconds:02}] {text}", flush=True)


# --- runs ----------------------------------------------------------------------------------------
class RunError(Exception):
    """A command ended with an error; the text holds the end of its output."""


@dataclass(frozen=True)
class Contender:
    """One measured program. Of several `settings` the fastest is found first, then used.

    `merges`: it writes a merged model, whose elements can be checked.
    """

    name: str
    kind: Literal["limit", "ours", "peer"]
    settings: Mapping[str, Command]
    reads: tuple[Path, ...] = ()
    written_bytes: int = 0
    merges: bool = False


@dataclass(frozen=True)
class Run:
    """What one command took. `seconds`: of the work alone where the command states it, else those
    of the process. Memory: as `probe.py` says."""

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_bytes: int
    anonymous_bytes: int
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


Runs = dict[str, list[Run]]
"""Runs of each contender, one a round."""


class Bench:
    """Runs contenders below `scratch`, one at a time, and removes what they write.

    A peer that fails is left out from then on, with the reason in `failed`; if ours or a limit
    fails, RunError ends the benchmark. Labels (a state of the page cache, a corpus) keep the
    settings apart.
    """

    memory: Literal["one", "all"] = "one"

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.failed: dict[str, str] = {}
        self.chosen: dict[str, dict[str, str]] = {}
        self.tried: dict[str, dict[str, dict[str, list[float]]]] = {}

    def before(self, contender: Contender, label: str) -> dict[str, Any]:
        """Called before every run; what it returns is kept with the run."""
        del contender, label
        return {}

    def after(self, contender: Contender, label: str, out: Path, run: Run) -> dict[str, Any]:
        """Called after every run, while its output is there; the same."""
        del contender, label, out, run
        return {}

    def once(self, contender: Contender, setting: str, label: str) -> Run:
        """One measured run from a settled disk."""
        out = fresh(self.scratch / "out")
        os.sync()
        known = self.before(contender, label)
        try:
            run = self.measured(contender.settings[setting](out))
            known |= run.more
            run = Run(**{**asdict(run), "more": known | self.after(contender, label, out, run)})
        finally:
            fresh(out)
        say(
            f"{label:6} {contender.name:22} {run.seconds:7.2f} s {run.peak_bytes / 2**30:6.2f} GiB"
            f"  {setting}"
        )
        return run

    def measured(self, command: Sequence[str]) -> Run:
        """Raises RunError with the end of the command's output."""
        names = ("probe.json", "output.txt", "report.json")
        probed, log, report = (self.scratch / name for name in names)
        for path in (probed, report):
            path.unlink(missing_ok=True)
        probe = [sys.executable, "-I", "-S", str(HERE / "probe.py"), self.memory]
        done = subprocess.run([*probe, str(probed), str(log), *_LIKE_A_USER, *command], check=False)
        found = json.loads(probed.read_text()) if probed.is_file() else {}
        status = found.pop("exit_status", done.returncode)
        if status != 0:
            lines = log.read_text(errors="replace").splitlines()[-25:]
            raise RunError(f"exit status {status}: {' '.join(command)}\n" + "\n".join(lines))
        own = json.loads(report.read_text()) if report.is_file() else {}
        found["process_seconds"] = found["seconds"]
        return Run(**{**found, "seconds": own.pop("seconds", found["seconds"]), "more": own})

    def choose(self, contenders: Sequence[Contender], label: str, *, num_tries: int = 1) -> None:
        """Find the fastest setting of every contender that has several, in alternated tries."""
        for contender in contenders:
            settings = list(contender.settings)
            times: dict[str, list[float]] = {setting: [] for setting in settings}
            if len(settings) > 1:
                for number in range(num_tries):
                    for setting in settings if number % 2 == 0 else reversed(settings):
                        run = self.attempt(contender, setting, label)
                        times[setting] += [] if run is None else [run.seconds]
                self.tried.setdefault(label, {})[contender.name] = times
                settings = [setting for setting in settings if times[setting]] or settings
            best = min(settings, key=lambda setting: median(times[setting] or [0.0]))
            self.chosen.setdefault(label, {})[contender.name] = best

    def rounds(self, contenders: Sequence[Contender], label: str, *, num: int) -> Runs:
        """`num` rounds over all contenders, every other one backwards."""
        found: Runs = {contender.name: [] for contender in contenders}
        for number in range(num):
            say(f"{label}: round {number + 1} of {num}")
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                setting = self.chosen.get(label, {}).get(contender.name)
                run = self.attempt(contender, setting or next(iter(contender.settings)), label)
                if run is not None:
                    found[contender.name].append(run)
            raw = {name: [asdict(run) for run in runs] for name, runs in found.items()}
            _write(self.scratch.parent / f"rounds_{label}.json", raw)  # stays if a later run fails
        return {name: runs for name, runs in found.items() if runs and name not in self.failed}

    def attempt(self, contender: Contender, setting: str, label: str) -> Run | None:
        """One run; None for a peer that fails, now or before."""
        if contender.name in self.failed:
            return None
        try:
            return self.once(contender, setting, label)
        except RunError as error:
            if contender.kind != "peer":
                raise
            self.failed[contender.name] = str(error)
            say(f"{contender.name} failed and is left out: {error}")
            return None

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


def fresh(path: Path) -> Path:
    """The path, with nothing there."""
    if path.exists():
        shutil.rmtree(path)
    return path


# --- numbers -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    """One goal: `value` must not be above (`at_least`: below) `limit`. None: was not measured."""

    value: float | None
    limit: float
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def summary(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def middle(runs: Sequence[Run], column: str = "seconds") -> float:
    """The median of a column."""
    return median(getattr(run, column) for run in runs)


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Every raw number and the medians, by contender."""
    return {
        name: {
            "runs": [asdict(run) for run in items],
            **{f"median_{column}": middle(items, column) for column in _MEASURED},
        }
        for name, items in runs.items()
    }


def ratio(runs: Mapping[str, Sequence[Run]], upper: str, lower: str) -> dict[str, Any]:
    """Seconds of one contender over those of another, per round and of the medians; empty if one
    of them took no part."""
    if not (runs.get(upper) and runs.get(lower)):
        return {}
    pairs = zip(runs[upper], runs[lower], strict=False)
    per_round = [a.seconds / b.seconds for a, b in pairs]
    return {
        "per_round": per_round,
        "median_of_rounds": median(per_round),
        "of_medians": middle(runs[upper]) / middle(runs[lower]),
    }


def text_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line per contender below the columns' names."""
    columns = list(next(iter(rows.values()), {}))
    lines = ["", title, " " * 24 + "".join(f"{column:>12}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"  {name:22}" + "".join(f"{row[column]:12.2f}" for column in columns))
    return "\n".join(lines)


def goal_lines(goals: Mapping[str, Goal]) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines = ["", "goals"]
    for name, goal in goals.items():
        value = "-" if goal.value is None else f"{goal.value:.3f}"
        sign = ">=" if goal.at_least else "<="
        note = f" ({goal.note})" if goal.note else ""
        lines.append(f"  {words[goal.met]:12} {name}: {value} {sign} {goal.limit:g}{note}")
    return "\n".join(lines)


Panel = Mapping[str, Mapping[str, float]]
"""Values by group (a state of the cache, a corpus) and contender."""


def draw(path: Path, title: str, panels: Mapping[str, tuple[Panel, float | None]]) -> None:
    """Bars of two measures side by side; `panels`: by the axis' label, values and a dotted line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    groups = next(iter(panels.values()))[0]
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(11, 1.7 + 0.45 * len(names)), sharey=True, layout="constrained"
    )
    height, shades = 0.8 / max(1, len(groups)), ("#1f5a94", "#e08e3c")
    for axis, (label, (panel, line)) in zip(axes, panels.items(), strict=True):
        for number, (group, values) in enumerate(panel.items()):
            rows = [index + number * height for index, name in enumerate(names) if name in values]
            shown = [values[name] for name in names if name in values]
            bars = axis.barh(rows, shown, height, color=shades[number % 2], label=group)
            axis.bar_label(bars, fmt="%.4g", padding=2, fontsize=7)
        if line is not None:
            axis.axvline(line, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel(label)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    axes[0].invert_yaxis()
    axes[-1].legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# --- what is kept --------------------------------------------------------------------------------
def keep(name: str, result: Mapping[str, object], folder: Path = RESULTS) -> Path:
    """Write `<folder>/<name>.json`: the result with its environment."""
    folder.mkdir(exist_ok=True)
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if "model name" in line]
    environment = {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": library_versions(),
        "code": code_version(),
        "git": git_state(HERE),
    }
    path = folder / f"{name}.json"
    _write(path, {**result, "environment": environment})
    return path


def finish(name: str, result: dict[str, Any], *, folder: Path, lasting: bool) -> None:
    """Keep the result in `folder`, and end with an error where `correctness` does not hold."""
    path = keep(name, result, folder)
    print(f"\nresult: {path}" if lasting else "\nnot the full run, and no --data: not kept")
    if result["correctness"]["holds"] is False:
        sys.exit(f"the outputs are wrong: {json.dumps(result['correctness'], indent=1)}")


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


# --- command line --------------------------------------------------------------------------------
def parser_of(document: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks with peers have."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=document, formatter_class=form)
    add = parser.add_argument
    add("--data", type=Path, help="keep inputs here and use them again (a temporary folder)")
    add("--peers", type=Path, help="folder of the peers' environments")
    add("--make-peers", type=Path, metavar="DIR", help="make these environments, and stop")
    add("--rounds", type=int, help=f"rounds ({rounds})")
    add("--only", action="append", metavar="NAME", help="only this contender (may be repeated)")
    add("--quick", action="store_true", help="small inputs and one round, to try everything")
    return parser


def make_environment(place: Path, libraries: Sequence[str]) -> None:
    """A virtual environment with `libraries`; one that exists is brought up to date."""
    print(f"making {place} with {', '.join(libraries)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = str(place / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *libraries], check=True)
