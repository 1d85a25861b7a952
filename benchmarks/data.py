"""Packing real text: tokens per second and memory, beside the tokenizer alone and beside peers.

    python benchmarks/data.py --make-peers DIR           # once; datatrove is optional
    python benchmarks/data.py [--peers DIR] [--data DIR]
    python benchmarks/data.py --quick                    # a few megabytes: does everything work?

Makes corpora of 50 MB and 500 MB from the text that is installed (see data_corpus.py) and trains a
BPE tokenizer of 49,152 tokens on 20 MB of it. Then alternates whole processes, with as many threads
or processes as there are cores and the text in the page cache:

* encode_batch_fast: the limit. Only the seconds inside that call of the tokenizers library count;
  the fastest of several batch sizes.
* limit_small_cache: the same with as few words remembered as our encoder has it, on 50 MB.
* pack_stage: ours, the stage as a run builds it, from documents.jsonl to the published, hashed
  ids, flags and ledger: one pass, every token in it.
* datasets_map: `load_dataset` of JSON lines, `map` with a fast tokenizer, `map` of group_texts.
* datatrove: its JSON lines reader and tokenizer, from its own environment; not its merger.

All rates are of the same tokens: those of the text, EOS not counted. On 500 MB ours and the limit
take part, with --large-peers also the peers, once each. Result: medians, all numbers, ratios per
round and of medians, times extrapolated to 500M and 10B tokens, goals; results/data.json and .png.
A run that is not the full one (--quick, --only, code that is not committed) leaves both in the data
folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_contenders import contenders, datatrove_python, make_environments
from data_corpus import MEGABYTE, Corpus, make_corpus
from data_stages import SEQUENCE_LENGTH, Workplace
from harness import (
    HERE,
    RESULTS,
    Bench,
    Contender,
    Goal,
    Run,
    RunError,
    Runs,
    draw,
    finish,
    goal_lines,
    middle,
    parser_of,
    ratio,
    say,
    summarise,
    text_table,
)

from cpt_residual.core.disk import check_free_space
from cpt_residual.core.measure import usable_cores
from cpt_residual.errors import CptResidualError

ROUNDS = 3
LIMIT, OURS = "encode_batch_fast", "pack_stage"
OF_LIMIT, SAME_MEMORY = 0.9, 1.1
AHEAD = (500_000_000, 10_000_000_000)
SAME_TOKENS = (0.98, 1.001)
"""What a peer's tokens may be over those of the text with an EOS for each document: `group_texts`
drops the rest of every batch."""

MIB = 1 << 20
_CODE = ("src", ":(glob)benchmarks/*.py", "constraints.txt")
_ROOM = 12  # bytes of disk per byte of the largest corpus: its copies, and what peers write


@dataclass(frozen=True)
class Options:
    """What to measure. Sizes in megabytes of text: of the tokenizer's, the smaller and the larger
    corpus."""

    data: Path
    peers: Path | None
    sizes: tuple[int, int, int]
    vocab_size: int
    rounds: int
    only: tuple[str, ...]
    large_peers: bool
    quick: bool
    is_committed: bool

    @property
    def is_full(self) -> bool:
        """Whether this is the run whose result is kept with the code."""
        whole = not self.quick and not self.only and self.rounds >= ROUNDS
        return whole and self.is_committed


class DataBench(Bench):
    """Counts the tokens of each corpus: the limit's, with an EOS for each document."""

    memory = "all"

    def __init__(self, scratch: Path, documents: Mapping[str, int]) -> None:
        super().__init__(scratch)
        self.documents = documents
        self.budgets: dict[str, int] = {}

    def after(self, contender: Contender, label: str, out: Path, run: Run) -> dict[str, Any]:
        del out
        if contender.kind == "limit":
            self.budgets[label] = run.more["tokens"] + self.documents[label]
        return {}


def measure(options: Options) -> dict[str, Any]:
    """The whole benchmark."""
    if not options.is_committed:
        say("the code is not committed: the result stays in the data folder")
    check_free_space(options.data, _ROOM * options.sizes[-1] * MEGABYTE)
    place = Workplace(options.data, options.vocab_size)
    corpora = _prepared(options, place)
    if datatrove_python(options.peers) is None:
        say("datatrove is absent: no environment for it (--make-peers DIR, then --peers DIR)")
    documents = {name: corpus.facts.num_documents for name, corpus in corpora.items()}
    bench = DataBench(options.data / "scratch", documents)
    sizes: dict[str, Runs] = {}
    small, large = corpora
    try:
        for name in (small, large):
            line = contenders(place, name, bench.budgets, options.peers)
            line = [
                each for each in line if not options.only or each.name in (LIMIT, *options.only)
            ]
            if name == small:
                bench.choose(line, small)
            bench.chosen[name] = bench.chosen[small]
            peers = [each for each in line if each.kind == "peer" and name == large]
            own = [each for each in line if each not in peers]
            sizes[name] = bench.rounds(own, name, num=options.rounds)
            if peers and options.large_peers:
                sizes[name] |= bench.rounds(peers, name, num=1)
    finally:
        bench.close()
    return _result(options, bench, corpora, sizes)


def _prepared(options: Options, place: Workplace) -> dict[str, Corpus]:
    """The two corpora, in the store too, and the tokenizer."""
    corpora: dict[str, Corpus] = {}
    names = ["sample", *(f"{size}MB" for size in options.sizes[1:])]
    for name, megabytes in zip(names, options.sizes, strict=True):
        say(f"making {name}: {megabytes} MB of installed text")
        corpora[name] = make_corpus(place.text(name), num_bytes=megabytes * MEGABYTE)
        place.build(place.corpus(name))
    say(f"training a tokenizer of {place.vocab_size:,} tokens")
    place.build(place.tokenizer())
    corpora.pop("sample")
    return corpora


def _result(
    options: Options, bench: DataBench, corpora: dict[str, Corpus], sizes: dict[str, Runs]
) -> dict[str, Any]:
    tokens = {name: bench.budgets[name] - bench.documents[name] for name in corpora}
    goals = _goals(sizes)
    for name, runs in sizes.items():
        rows = {each: _row(items, tokens[name]) for each, items in runs.items()}
        print(text_table(f"{name}: {tokens[name]:,} tokens of text, medians", rows))
    print(goal_lines(goals), flush=True)
    large = list(sizes)[-1]
    rate = _rate(sizes[large][OURS], tokens[large]) if OURS in sizes[large] else None
    _draw(options, sizes, tokens)
    return {
        "corpora": {
            name: {**asdict(corpus.facts), "text_tokens": tokens[name]}
            for name, corpus in corpora.items()
        },
        "cores": usable_cores(),
        "vocab_size": options.vocab_size,
        "sequence_length": SEQUENCE_LENGTH,
        "rounds": options.rounds,
        "settings_tried_seconds": bench.tried,
        "settings_chosen": bench.chosen,
        "contenders": {name: summarise(runs) for name, runs in sizes.items()},
        "seconds_of_the_limit_over_theirs": {
            name: {each: ratio(runs, LIMIT, each) for each in runs if each != LIMIT}
            for name, runs in sizes.items()
        },
        "pack_stage_seconds_for_tokens": {str(n): n / rate for n in AHEAD} if rate else {},
        "goals": {name: goal.summary() for name, goal in goals.items()},
        "correctness": correctness(bench.budgets, sizes),
        "peers_failed": bench.failed,
    }


def correctness(budgets: Mapping[str, int], sizes: Mapping[str, Runs]) -> dict[str, Any]:
    """Every pack holds all tokens of its corpus, all packs of a corpus are the same, and peers had
    the same tokens. `holds`: None where ours took no part."""
    packs = {name: runs.get(OURS, []) for name, runs in sizes.items()}
    complete = {
        name: bool(runs) and all(run.more["tokens"] == budgets[name] for run in runs)
        for name, runs in packs.items()
    }
    hashes = {name: {run.more["rows_sha256"] for run in runs} for name, runs in packs.items()}
    peers = {
        name: {
            peer: [run.more["tokens"] / budgets[name] for run in items]
            for peer, items in runs.items()
            if peer not in (LIMIT, OURS)
        }
        for name, runs in sizes.items()
    }
    ratios = [ratio for runs in peers.values() for items in runs.values() for ratio in items]
    same = all(SAME_TOKENS[0] <= ratio <= SAME_TOKENS[1] for ratio in ratios)
    holds = all(complete.values()) and all(len(found) == 1 for found in hashes.values()) and same
    return {
        "all_tokens_packed": complete,
        "rows_sha256": {name: sorted(found) for name, found in hashes.items()},
        "tokens_of_peers_over_those_of_the_text": peers,
        "holds": holds if any(packs.values()) else None,
    }


def _goals(sizes: Mapping[str, Runs]) -> dict[str, Goal]:
    """Speed is judged on the larger corpus."""
    small, large = list(sizes)
    speed = ratio(sizes[large], LIMIT, OURS)
    peaks = {name: middle(runs[OURS], "peak_bytes") for name, runs in sizes.items() if OURS in runs}
    grown = peaks[large] / peaks[small] if len(peaks) == len(sizes) else None
    return {
        f"{large}: tokens/s of the pack stage over the limit": Goal(
            speed.get("of_medians"), OF_LIMIT, at_least=True
        ),
        f"peak memory of the pack stage, {large} over {small}": Goal(grown, SAME_MEMORY),
    }


def _rate(runs: list[Run], text_tokens: int) -> float:
    return text_tokens / middle(runs)


def _row(runs: list[Run], text_tokens: int) -> dict[str, float]:
    return {
        "M tokens/s": _rate(runs, text_tokens) / 1e6,
        "seconds": middle(runs),
        "process s": middle(runs, "process_seconds"),
        "CPU s": middle(runs, "cpu_seconds"),
        "peak MiB": middle(runs, "peak_bytes") / MIB,
        "anon MiB": middle(runs, "anonymous_bytes") / MIB,
    }


def _draw(options: Options, sizes: Mapping[str, Runs], tokens: Mapping[str, int]) -> None:
    rows = {
        size: {name: _row(items, tokens[size]) for name, items in runs.items()}
        for size, runs in sizes.items()
    }
    large = list(sizes)[-1]
    goal = OF_LIMIT * rows[large][LIMIT]["M tokens/s"] if LIMIT in rows[large] else None

    def column(name: str) -> dict[str, dict[str, float]]:
        return {s: {n: row[name] for n, row in found.items()} for s, found in rows.items()}

    panels = {
        f"million tokens of text per second (dotted: {OF_LIMIT} of the limit)": (
            column("M tokens/s"),
            goal,
        ),
        "peak resident memory of all processes, MiB": (column("peak MiB"), None),
    }
    folder = RESULTS if options.is_full else options.data
    title = f"Packing text with a BPE of {options.vocab_size:,} tokens, {usable_cores()} cores"
    draw(folder / "data.png", title, panels)


def _is_committed() -> bool:
    """Whether the code that is measured is what its commit says."""
    command = ["git", "status", "--porcelain", "--", *_CODE]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.strip()


def main() -> None:
    parser = parser_of(__doc__, rounds=ROUNDS)
    parser.add_argument("--large-peers", action="store_true", help="peers on the larger one too")
    arguments = parser.parse_args()
    if arguments.make_peers:
        make_environments(arguments.make_peers)
        return
    with tempfile.TemporaryDirectory(prefix="cpt-residual-data-") as temporary:
        options = _options(arguments, Path(temporary))
        options.data.mkdir(parents=True, exist_ok=True)
        try:
            result = measure(options)
        except (RunError, CptResidualError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        folder = RESULTS if options.is_full else options.data
        finish("data", result, folder=folder, lasting=options.is_full or bool(arguments.data))


def _options(arguments: argparse.Namespace, temporary: Path) -> Options:
    quick = arguments.quick
    return Options(
        data=(arguments.data or temporary).absolute(),
        peers=arguments.peers,
        sizes=(2, 5, 20) if quick else (20, 50, 500),
        vocab_size=8_192 if quick else 49_152,
        rounds=arguments.rounds or (1 if quick else ROUNDS),
        only=tuple(arguments.only or ()),
        large_peers=arguments.large_peers or quick,
        quick=quick,
        is_committed=_is_committed(),
    )


if __name__ == "__main__":
    main()
