"""Merging a family of 1.24B parameters: seconds and memory, beside copying it and beside peers.

    python benchmarks/weights.py --make-peers DIR          # once; peers are optional
    python benchmarks/weights.py [--peers DIR] [--data DIR]
    python benchmarks/weights.py --quick                   # a small family: does everything work?

Makes a Llama-3.2-1B-shaped family (see weights_family.py) and alternates, from a cold and from a
warm page cache, at least 5 rounds of whole processes:

* copy, copy_four: the limit. Reads the three file sets, writes one (or four) of them; the fastest
  of several numbers of threads and block sizes, through the page cache and past it, into memory in
  huge pages. Flushes what it writes.
* compute, apply, direct, four_alphas: ours, as typed in a shell: `cpt-residual compute`, `apply`
  from the stored residual, `apply` from base and instruct, and with four alphas in one pass
  (`--no-verify`: the check that loads the written model with torch is measured apart).
* mergekit (task_arithmetic in bf16, the fastest of its settings) and residuals (its Python API in
  bf16: its documented fp32 writes twice the bytes), each from its own environment. mergekit and
  residuals start, as direct does, from the three models; residuals_apply starts, as apply does,
  from a stored residual.

Peers do not flush what they write; the time until it is on the disk is kept apart and not counted.
Then ours runs once on a family of at least twice the bytes, for its memory. In the same run, direct
is compared with apply byte by byte, and samples of every merged model with float64 arithmetic.
Result: medians, all numbers, ratios per round and of medians, goals; results/weights.json and .png.
A run that is not the full one (--quick, --only, --layers ...) leaves both in the data folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import weights_contenders as contending
import weights_peers as peering
import weights_report as report
from environment import RESULTS, keep
from weights_check import sampled_errors, weights_hash
from weights_contenders import Contender, Line
from weights_family import ONE_B, SMALL, Family, Size, make
from weights_measure import Run, RunError
from weights_rounds import Bench, State, reached, warm_is_possible

from cpt_residual.core.disk import check_free_space, format_bytes, free_bytes
from cpt_residual.errors import CptResidualError

MIN_ROUNDS = 5
STATES: tuple[State, ...] = ("cold", "warm")
_STARTED = time.monotonic()

AllRuns = dict[State, dict[str, list[Run]]]


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3}:{seconds:02}] {text}", flush=True)


@dataclass(frozen=True)
class Options:
    """What to measure, and where the family lies."""

    data: Path
    environments: peering.Peers
    size: Size
    rounds: int
    states: tuple[State, ...]
    only: tuple[str, ...]
    twice: bool
    quick: bool

    @property
    def is_full(self) -> bool:
        """Whether this is the run whose result is kept with the code."""
        whole = self.size == ONE_B and self.states == STATES and self.twice and not self.only
        return whole and self.rounds >= MIN_ROUNDS


class Correctness:
    """Looks at outputs of the first round."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.hashes: dict[str, str] = {}
        self.sampled: dict[str, Any] = {}

    def look(self, contender: Contender, out: Path) -> None:
        folders = {1.0: out} if contender.merges else {}
        if contender.name == "four_alphas":
            folders = {alpha: out / f"alpha_{alpha}" for alpha in contending.ALPHAS}
        for alpha, folder in folders.items():
            name = contender.name if len(folders) == 1 else f"{contender.name} {alpha}"
            self.sampled[name] = sampled_errors(self.family, folder, alpha=alpha)
            if contender.kind == "ours":
                self.hashes[name] = weights_hash(folder)

    def summary(self) -> dict[str, Any]:
        """All answers; `holds` is about ours alone. None: was not measured."""
        direct = self.hashes.get("direct")
        same = {
            name: self.hashes[name] == direct if direct and name in self.hashes else None
            for name in ("apply", "four_alphas 1.0")
        }
        clean = [
            not found["missing"] and found["wrong_elements"] == 0
            for name, found in self.sampled.items()
            if name in self.hashes
        ]
        return {
            "same_bytes_as_direct": same,
            "sampled_against_float64": self.sampled,
            "holds": all(clean) and False not in same.values(),
        }


def measure(options: Options) -> tuple[dict[str, Any], AllRuns]:
    """The whole benchmark: as one JSON value, and the runs of each state."""
    for name in peering.VERSIONS:
        if not options.environments.has(name):
            say(f"{name} is absent: no environment for it (--make-peers DIR, then --peers DIR)")
    versions = options.environments.versions()
    family = make(options.size, options.data, say=say)
    bench = Bench(options.data / "scratch", say)
    try:
        contenders, stored = _line_up(options, family, bench)
        places = _places(options, family, bench)
        commands = _commands(contenders, places)
        if not options.quick:
            _warm_up(options, bench)
        bench.prepare(stored)
        correct, states, notes = Correctness(family), {}, {}
        for state in options.states:
            if state == "warm" and not warm_is_possible(contenders):
                notes[state] = "not measured: the inputs do not fit into the free memory"
                say(f"warm cache {notes[state]}")
                continue
            bench.choose(contenders, state, num_tries=1 if options.quick else 2)
            look = None if states else correct.look
            states[state] = bench.rounds(contenders, state, num=options.rounds, look=look)
            notes[state] = reached(states[state], state)
        checked = _checked(options, family, bench)
        twice = _twice(options, bench)
        result = {
            **_result(options, bench, states, twice),
            "commands": commands,
            "peers": versions,
            "peers_failed": {
                name: _without_places(text, places) for name, text in bench.failed.items()
            },
            "page_cache": notes,
            "direct_with_check": checked and asdict(checked),
            "correctness": correct.summary(),
        }
        return result, states
    finally:
        bench.close()


def _line_up(options: Options, family: Family, bench: Bench) -> Line:
    """The contenders that were asked for, and the stored residuals that they need."""
    ours, of_ours = contending.ours(family, bench.scratch)
    peers, of_peers = contending.peers(family, bench.scratch, options.environments)
    everybody = contending.in_order([*contending.limits(family), *ours, *peers])
    line = contending.only(options.only, (everybody, [*of_ours, *of_peers]))
    if not line[0]:
        names = ", ".join(item.name for item in everybody)
        sys.exit(f"--only: there is no {', '.join(options.only)}; there are {names}")
    check_free_space(options.data, contending.needed_bytes(line))
    return line


def _warm_up(options: Options, bench: Bench) -> None:
    say("warming up on a small family: byte code, compiled kernels, libraries")
    small = Bench(bench.scratch / "small", say)
    contenders, stored = _line_up(options, make(SMALL, options.data, say=say), small)
    small.prepare(stored)
    small.every_setting(contenders)
    small.close()


def _checked(options: Options, family: Family, bench: Bench) -> Run | None:
    if options.only and "direct" not in options.only:
        return None
    say("direct apply with the check after writing")
    return bench.once(contending.ours_with_check(family), "", options.states[0])


def _twice(options: Options, bench: Bench) -> dict[str, Run]:
    """Ours once on a family of at least twice the bytes."""
    if not options.twice:
        return {}
    size = _doubled(options.size)
    say(f"twice the size, for the memory: {size.layers} layers instead of {options.size.layers}")
    for folder in bench.scratch.iterdir():
        if folder.is_dir():
            contending.fresh(folder)
    family = make(size, options.data, say=say)
    line = contending.only(options.only, contending.ours(family, bench.scratch))
    if free_bytes(options.data) < contending.needed_bytes(line):
        say("too little free disk for four alphas at twice the size: left out")
        line = contending.only(("compute", "apply", "direct"), line)
    contenders, stored = line
    bench.prepare(stored)
    return {item.name: bench.once(item, next(iter(item.settings)), "cold") for item in contenders}


def _doubled(size: Size) -> Size:
    fixed = replace(size, layers=0).num_parameters
    per_layer = replace(size, layers=1).num_parameters - fixed
    return replace(size, layers=math.ceil((2 * size.num_parameters - fixed) / per_layer))


def _result(
    options: Options,
    bench: Bench,
    states: AllRuns,
    twice: dict[str, Run],
) -> dict[str, Any]:
    goals = report.goals(states, twice)
    doubled = _doubled(options.size).num_parameters
    print(report.table(states, goals), flush=True)
    return {
        "family": {
            **asdict(options.size),
            "num_parameters": options.size.num_parameters,
            "bytes_per_model": options.size.num_bytes,
        },
        "rounds": options.rounds,
        "settings_tried_seconds": bench.tried,
        "settings_chosen": bench.chosen,
        "states": {state: report.summarise(runs) for state, runs in states.items()},
        "ratios": {state: report.ratios(runs) for state, runs in states.items()},
        "twice": {
            "num_parameters": doubled,
            "factor": doubled / options.size.num_parameters,
            "runs": {name: asdict(item) for name, item in twice.items()},
        },
        "goals": {name: goal.summary() for name, goal in goals.items()},
        "disk": _disk(options.data),
    }


def _commands(contenders: list[Contender], places: dict[str, str]) -> dict[str, dict[str, str]]:
    """Every command as it is run, in each of its settings."""
    return {
        contender.name: {
            setting: _without_places(" ".join(command(Path("OUT"))).replace("\n", ","), places)
            for setting, command in contender.settings.items()
        }
        for contender in contenders
    }


def _places(options: Options, family: Family, bench: Bench) -> dict[str, str]:
    """Folders of this machine, and what stands for them in a result."""
    folders = {
        bench.scratch: "SCRATCH",
        family.base.parent: "FAMILY",
        options.data: "DATA",
        options.environments.folder: "PEERS",
        Path(sys.executable).parent: "BIN",
        Path(__file__).absolute().parent: "benchmarks",
    }
    return {str(folder.absolute()): name for folder, name in folders.items() if folder}


def _without_places(text: str, places: dict[str, str]) -> str:
    for folder, name in places.items():
        text = text.replace(folder, name)
    return text


def _disk(folder: Path) -> dict[str, str]:
    """File system below the family, and the room that is left."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if folder.absolute().is_relative_to(m[1])]
    kind = max(inside, key=lambda mount: len(mount[1]))[2] if inside else "unknown"
    return {"file_system": kind, "free": format_bytes(free_bytes(folder))}


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.make_peers:
        peering.make_environments(arguments.make_peers)
        return
    with tempfile.TemporaryDirectory(prefix="cpt-residual-weights-") as temporary, _one_line():
        options = _options(arguments, Path(temporary))
        options.data.mkdir(parents=True, exist_ok=True)
        result, states = measure(options)
        path = options.data / "weights.json"
        if options.is_full:
            path = keep("weights", result)
        else:
            path.write_text(json.dumps(result, indent=1) + "\n")
        picture = (RESULTS if options.is_full else options.data) / "weights.png"
        report.draw(states, picture, title=_title(options))
        lasting = options.is_full or arguments.data
        print(f"\nresult: {path}" if lasting else "\nnot the full run, and no --data: not kept")
    if not result["correctness"]["holds"]:
        sys.exit(f"ours is wrong: {json.dumps(result['correctness'], indent=1)}")


@contextmanager
def _one_line() -> Generator[None]:
    """A failed run of ours, or too little disk, ends the benchmark with its message alone."""
    try:
        yield
    except (RunError, CptResidualError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _title(options: Options) -> str:
    millions = options.size.num_parameters / 1e6
    return f"Merging {millions:,.0f}M parameters (bf16): medians, rounds: {options.rounds}"


def _options(arguments: argparse.Namespace, temporary: Path) -> Options:
    size = SMALL if arguments.quick else ONE_B
    return Options(
        data=(arguments.data or temporary).absolute(),
        environments=peering.Peers(arguments.peers),
        size=replace(size, layers=arguments.layers or size.layers),
        rounds=arguments.rounds or (1 if arguments.quick else MIN_ROUNDS),
        states=tuple(state for state in STATES if state in (arguments.state or STATES)),
        only=tuple(arguments.only or ()),
        twice=not arguments.no_twice,
        quick=arguments.quick,
    )


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--data", type=Path, help="keep the family here and use it again (a temporary folder)")
    add("--peers", type=Path, help="folder of the peers' environments")
    add("--make-peers", type=Path, metavar="DIR", help="make these environments, and stop")
    add("--layers", type=int, help="another number of layers than 16")
    add("--rounds", type=int, help=f"rounds per state of the cache ({MIN_ROUNDS})")
    add("--state", action="append", choices=STATES, help="only this state of the cache")
    add("--only", action="append", metavar="NAME", help="only this contender (may be repeated)")
    add("--no-twice", action="store_true", help="leave out the family of twice the size")
    add("--quick", action="store_true", help="a small family and one round, to try everything")
    return parser


if __name__ == "__main__":
    main()
