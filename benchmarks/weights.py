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

import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import page_cache
import weights_contenders as contending
from harness import (
    RESULTS,
    Bench,
    Contender,
    Goal,
    Run,
    RunError,
    Runs,
    draw,
    finish,
    fresh,
    goal_lines,
    middle,
    parser_of,
    ratio,
    say,
    summarise,
    text_table,
)
from weights_check import sampled_errors, weights_hash
from weights_contenders import ALPHAS, OURS, Line, Peers
from weights_family import ONE_B, SMALL, Family, Size, make

from cpt_residual.core.disk import check_free_space, format_bytes, free_bytes
from cpt_residual.errors import CptResidualError

MIN_ROUNDS = 5
STATES = ("cold", "warm")
GIB = 1 << 30
COPY_FACTOR, PEER_FACTOR, ALPHAS_FACTOR, PEAK_GIB, SAME_FACTOR = 1.35, 4.0, 1.6, 0.5, 1.1
PEER_MERGES = (("mergekit", "direct"), ("residuals", "direct"), ("residuals_apply", "apply"))
"""Each peer, and what ours does with the same inputs."""
RATIOS = (
    *(("direct", "copy"), ("apply", "copy"), ("four_alphas", "direct")),
    *(("four_alphas", "copy_four"), ("copy_four", "copy"), *PEER_MERGES),
    ("residuals_apply", "direct"),
    *((peer, "copy") for peer, _ in PEER_MERGES),
)
_ROOM = 1.2  # a warm cache needs the inputs' bytes in memory, and something beside


@dataclass(frozen=True)
class Options:
    """What to measure, and where the family lies."""

    data: Path
    environments: Peers
    size: Size
    rounds: int
    states: tuple[str, ...]
    only: tuple[str, ...]
    twice: bool
    quick: bool

    @property
    def is_full(self) -> bool:
        """Whether this is the run whose result is kept with the code."""
        whole = self.size == ONE_B and self.states == STATES and self.twice and not self.only
        return whole and self.rounds >= MIN_ROUNDS


class WeightsBench(Bench):
    """Runs from a known state of the page cache; looks at every contender's first merged model."""

    def __init__(self, scratch: Path, family: Family | None = None) -> None:
        super().__init__(scratch)
        self.family = family
        self.hashes: dict[str, str] = {}
        self.sampled: dict[str, Any] = {}

    def prepare(self, line: Line) -> None:
        """Computes the residuals that contenders read. They are on the disk afterwards."""
        for item in line[1]:
            say(f"computing the residual of {item.folder.name}, to be applied later")
            try:
                self.measured(item.compute(fresh(item.folder)))
            except RunError as error:
                if item.folder.name == "ours":
                    raise
                say(str(error))  # those that read it will fail, and are left out
            page_cache.flush(item.folder)

    def before(self, contender: Contender, label: str) -> dict[str, Any]:
        if label == "cold":
            page_cache.evict(contender.reads)
        else:  # room for what this one reads
            folders = (path for path in self.scratch.iterdir() if path.is_dir())
            page_cache.evict(folder for folder in folders if folder not in contender.reads)
            page_cache.load(contender.reads)
        return {"resident_before": page_cache.resident_share(contender.reads)}

    def after(self, contender: Contender, label: str, out: Path, run: Run) -> dict[str, Any]:
        del label, run
        flush_seconds = page_cache.flush(out)
        if contender.merges and self.family is not None and contender.name not in self.sampled:
            self._look(self.family, contender, out)
        return {"flush_seconds": flush_seconds}

    def _look(self, family: Family, contender: Contender, out: Path) -> None:
        folders = {1.0: out}
        if contender.name == "four_alphas":
            folders = {alpha: out / f"alpha_{alpha}" for alpha in ALPHAS}
        sampled = {
            str(alpha): sampled_errors(family, folder, alpha=alpha)
            for alpha, folder in folders.items()
        }
        self.sampled[contender.name] = sampled
        if contender.kind == "ours":
            self.hashes[contender.name] = weights_hash(folders[1.0])

    def correctness(self) -> dict[str, Any]:
        """`holds` is about ours alone."""
        clean = [
            not found["missing"] and found["wrong_elements"] == 0
            for name in self.hashes
            for found in self.sampled[name].values()
        ]
        return {
            "hashes_at_alpha_1": self.hashes,
            "sampled_against_float64": self.sampled,
            "holds": all(clean) and len(set(self.hashes.values())) <= 1,
        }


def measure(options: Options) -> dict[str, Any]:
    """The whole benchmark."""
    versions = options.environments.versions()
    family = make(options.size, options.data, say=say)
    bench = WeightsBench(options.data / "scratch", family)
    try:
        line = _line_up(options, family, bench)
        if not options.quick:
            _warm_up(options, bench)
        bench.prepare(line)
        states: dict[str, Runs] = {}
        notes: dict[str, Any] = {}
        for state in options.states:
            if state == "warm" and not _fits(line[0]):
                notes[state] = "not measured: the inputs do not fit into the free memory"
                continue
            bench.choose(line[0], state, num_tries=1 if options.quick else 2)
            states[state] = bench.rounds(line[0], state, num=options.rounds)
            notes[state] = _reached(states[state], state)
        checked = _checked(options, family, bench)
        return {
            **_result(options, bench, states, _twice(options, bench)),
            "peers": versions,
            "page_cache": notes,
            "direct_with_check": checked and asdict(checked),
        }
    finally:
        bench.close()


def _line_up(options: Options, family: Family, bench: Bench) -> Line:
    """The contenders that were asked for, and the stored residuals that they need."""
    everybody = contending.everybody(family, bench.scratch, options.environments)
    line = contending.only(options.only, everybody)
    if not line[0]:
        names = ", ".join(item.name for item in everybody[0])
        sys.exit(f"--only: there is no {', '.join(options.only)}; there are {names}")
    check_free_space(options.data, contending.needed_bytes(line))
    return line


def _fits(contenders: list[Contender]) -> bool:
    """Whether the inputs of every contender fit into the memory that is free."""
    files = [[p for f in item.reads for p in f.rglob("*") if p.is_file()] for item in contenders]
    largest = max(sum(path.stat().st_size for path in paths) for paths in files)
    return page_cache.available_bytes() >= _ROOM * largest


def _reached(runs: Runs, state: str) -> dict[str, Any]:
    """Whether the page cache was as wanted at the start of every run."""
    shares = [run.more["resident_before"] for items in runs.values() for run in items]
    least, most = min(shares), max(shares)
    as_wanted = most < 0.01 if state == "cold" else least > 0.99
    return {"least_resident": least, "most_resident": most, "as_wanted": as_wanted}


def _warm_up(options: Options, bench: Bench) -> None:
    say("warming up on a small family: byte code, compiled kernels, libraries")
    small = WeightsBench(bench.scratch / "small")
    line = _line_up(options, make(SMALL, options.data, say=say), small)
    small.prepare(line)
    for contender in line[0]:
        for setting in contender.settings:
            small.attempt(contender, setting, "warm")
    small.close()


def _checked(options: Options, family: Family, bench: Bench) -> Run | None:
    if options.only and "direct" not in options.only:
        return None
    say("direct apply with the check after writing")
    return bench.once(contending.ours_with_check(family), "", options.states[0])


def _twice(options: Options, bench: WeightsBench) -> dict[str, Run]:
    """Ours once on a family of at least twice the bytes."""
    if not options.twice:
        return {}
    size = _doubled(options.size)
    say(f"twice the size, for the memory: {size.layers} layers instead of {options.size.layers}")
    for folder in bench.scratch.iterdir():
        if folder.is_dir():
            fresh(folder)
    family = make(size, options.data, say=say)
    line = contending.only(options.only, contending.ours(family, bench.scratch))
    if free_bytes(options.data) < contending.needed_bytes(line):
        say("too little free disk for four alphas at twice the size: left out")
        line = contending.only(("compute", "apply", "direct"), line)
    bench.prepare(line)
    return {item.name: bench.once(item, next(iter(item.settings)), "cold") for item in line[0]}


def _doubled(size: Size) -> Size:
    fixed = replace(size, layers=0).num_parameters
    per_layer = replace(size, layers=1).num_parameters - fixed
    return replace(size, layers=math.ceil((2 * size.num_parameters - fixed) / per_layer))


def _result(
    options: Options, bench: WeightsBench, states: Mapping[str, Runs], twice: dict[str, Run]
) -> dict[str, Any]:
    ratios = {
        state: {f"{a}/{b}": found for a, b in RATIOS if (found := ratio(runs, a, b))}
        for state, runs in states.items()
    }
    goals = _goals(ratios, states, twice)
    for state, runs in states.items():
        print(text_table(f"{state} cache, medians", {n: _row(r) for n, r in runs.items()}))
    print(goal_lines(goals), flush=True)
    folder = RESULTS if options.is_full else options.data
    title = f"Merging {options.size.num_parameters / 1e6:,.0f}M parameters (bf16), medians"
    seconds = {state: {n: middle(r) for n, r in runs.items()} for state, runs in states.items()}
    peaks = {state: {n: _peak(r) for n, r in runs.items()} for state, runs in states.items()}
    panels = {
        "seconds of the whole process": (seconds, None),
        "peak resident memory, GiB": (peaks, PEAK_GIB),
    }
    draw(folder / "weights.png", title, panels)
    return {
        "family": {**asdict(options.size), "num_parameters": options.size.num_parameters},
        "rounds": options.rounds,
        "settings_tried_seconds": bench.tried,
        "settings_chosen": bench.chosen,
        "states": {state: summarise(runs) for state, runs in states.items()},
        "ratios": ratios,
        "twice": {
            "num_parameters": _doubled(options.size).num_parameters,
            "runs": {name: asdict(item) for name, item in twice.items()},
        },
        "goals": {name: goal.summary() for name, goal in goals.items()},
        "correctness": bench.correctness(),
        "peers_failed": bench.failed,
        "free_disk": format_bytes(free_bytes(options.data)),
    }


def _row(runs: list[Run]) -> dict[str, float]:
    return {
        "seconds": middle(runs),
        "flush s": sum(run.more["flush_seconds"] for run in runs) / len(runs),
        "CPU s": middle(runs, "cpu_seconds"),
        "peak GiB": _peak(runs),
        "anon GiB": middle(runs, "anonymous_bytes") / GIB,
    }


def _peak(runs: list[Run]) -> float:
    return middle(runs, "peak_bytes") / GIB


def _goals(
    ratios: Mapping[str, Any], states: Mapping[str, Runs], twice: Mapping[str, Run]
) -> dict[str, Goal]:
    """The goals of the project, computed from medians over the rounds of each state."""
    found: dict[str, Goal] = {}
    for state, pairs in ratios.items():
        known = {name: item["of_medians"] for name, item in pairs.items()}
        copies = Goal(known.get("direct/copy"), COPY_FACTOR)
        found[f"{state}: direct apply over the copy limit"] = copies
        for peer, ours in PEER_MERGES:
            found[f"{state}: {peer} over {ours}"] = Goal(
                known.get(f"{peer}/{ours}"), PEER_FACTOR, at_least=True
            )
        disk = known.get("copy_four/copy")
        note = "" if disk is None else f"copying to four takes {disk:.2f} times as long as to one"
        alphas = Goal(known.get("four_alphas/direct"), ALPHAS_FACTOR, note=note)
        found[f"{state}: four alphas over one"] = alphas
    once: dict[str, int] = {}
    for runs in states.values():
        for name in OURS:
            once[name] = max([once.get(name, 0), *(run.peak_bytes for run in runs.get(name, ()))])
    peaks = [peak / GIB for peak in once.values() if peak]
    doubled = [run.peak_bytes / GIB for run in twice.values()]
    grown = [run.peak_bytes / once[name] for name, run in twice.items() if once.get(name)]
    memory = "peak memory of ours"
    return found | {
        f"{memory}, GiB": Goal(max(peaks, default=None), PEAK_GIB),
        f"{memory} at twice the size, GiB": Goal(max(doubled, default=None), PEAK_GIB),
        f"{memory}, twice the size over once": Goal(max(grown, default=None), SAME_FACTOR),
    }


def main() -> None:
    parser = parser_of(__doc__, rounds=MIN_ROUNDS)
    parser.add_argument("--layers", type=int, help="another number of layers than 16")
    parser.add_argument("--state", action="append", choices=STATES, help="only this cache")
    parser.add_argument("--no-twice", action="store_true", help="no family of twice the size")
    arguments = parser.parse_args()
    if arguments.make_peers:
        contending.make_environments(arguments.make_peers)
        return
    size = SMALL if arguments.quick else ONE_B
    with tempfile.TemporaryDirectory(prefix="cpt-residual-weights-") as temporary:
        options = Options(
            data=(arguments.data or Path(temporary)).absolute(),
            environments=Peers(arguments.peers),
            size=replace(size, layers=arguments.layers or size.layers),
            rounds=arguments.rounds or (1 if arguments.quick else MIN_ROUNDS),
            states=tuple(state for state in STATES if state in (arguments.state or STATES)),
            only=tuple(arguments.only or ()),
            twice=not arguments.no_twice,
            quick=arguments.quick,
        )
        options.data.mkdir(parents=True, exist_ok=True)
        try:
            result = measure(options)
        except (RunError, CptResidualError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        folder = RESULTS if options.is_full else options.data
        lasting = options.is_full or bool(arguments.data)
        finish("weights", result, folder=folder, lasting=lasting)


if __name__ == "__main__":
    main()
