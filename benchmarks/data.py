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
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data_report as report
from data_contenders import Contender, contenders, datatrove_python, make_environment
from data_corpus import MEGABYTE, Corpus, make_corpus
from data_rounds import Bench, RunError, Runs
from data_stages import SEQUENCE_LENGTH, Workplace
from environment import RESULTS, keep

from cpt_residual.core.disk import check_free_space
from cpt_residual.core.measure import usable_cores
from cpt_residual.errors import CptResidualError

ROUNDS = 3
_STARTED = time.monotonic()
SAME_TOKENS = (0.98, 1.001)
"""What a peer's tokens may be over those of the text with an EOS for each document: `group_texts`
drops the rest of every batch."""

_CODE = ("src", ":(glob)benchmarks/*.py", "constraints.txt")
_ROOM = 12  # bytes of disk per byte of the largest corpus: its copies, and what peers write


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3}:{seconds:02}] {text}", flush=True)


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


def measure(options: Options) -> tuple[dict[str, Any], dict[str, Runs], dict[str, int]]:
    """The whole benchmark: as one JSON value, the runs on each corpus, and its tokens."""
    if not options.is_committed:
        say("the code is not committed: the result stays in the data folder")
    check_free_space(options.data, _ROOM * options.sizes[-1] * MEGABYTE)
    place = Workplace(options.data, options.vocab_size)
    corpora, tokenizer = _prepared(options, place)
    if datatrove_python(options.peers) is None:
        say("datatrove is absent: no environment for it (--make-peers DIR, then --peers DIR)")
    line = contenders(place, tokenizer, options.peers)
    line = [item for item in line if not options.only or item.name in (report.LIMIT, *options.only)]
    bench = Bench(options.data / "scratch", say)
    try:
        small, large = corpora
        bench.choose(line, small, corpora[small].facts.num_documents)
        sizes: dict[str, Runs] = {}
        for name in (small, large):
            documents = corpora[name].facts.num_documents
            own = [item for item in line if name == small or item.kind != "peer"]
            sizes[name] = bench.rounds(own, name, documents=documents, num=options.rounds)
        if options.large_peers:
            sizes[large] |= _peers_once(bench, line, corpora[large], large)
    finally:
        bench.close()
    tokens = {
        name: bench.budgets[name] - corpus.facts.num_documents for name, corpus in corpora.items()
    }
    return _result(options, bench, corpora, sizes, tokens), sizes, tokens


def _prepared(options: Options, place: Workplace) -> tuple[dict[str, Corpus], Path]:
    """The two corpora, in the store too, and the tokenizer's folder."""
    corpora: dict[str, Corpus] = {}
    for name, megabytes in zip(_names(options.sizes), options.sizes, strict=True):
        say(f"making {name}: {megabytes} MB of installed text")
        corpora[name] = make_corpus(place.text(name), num_bytes=megabytes * MEGABYTE)
        place.build(place.corpus(name))
    say(f"training a tokenizer of {place.vocab_size:,} tokens")
    tokenizer = place.build(place.tokenizer())
    corpora.pop("sample")
    return corpora, tokenizer


def _names(sizes: tuple[int, int, int]) -> list[str]:
    return ["sample", *(f"{size}MB" for size in sizes[1:])]


def _peers_once(bench: Bench, line: Sequence[Contender], corpus: Corpus, name: str) -> Runs:
    say(f"{name}: peers once")
    peers = [item for item in line if item.kind == "peer"]
    return bench.rounds(peers, name, documents=corpus.facts.num_documents, num=1)


def _result(
    options: Options,
    bench: Bench,
    corpora: dict[str, Corpus],
    sizes: dict[str, Runs],
    tokens: dict[str, int],
) -> dict[str, Any]:
    goals = report.goals(sizes)
    print(report.table(sizes, tokens, goals), flush=True)
    large = list(sizes)[-1]
    return {
        "corpora": {
            name: {
                **asdict(corpus.facts),
                "text_tokens": tokens[name],
                "bytes_per_token": corpus.facts.num_bytes / tokens[name],
            }
            for name, corpus in corpora.items()
        },
        "cores": usable_cores(),
        "vocab_size": options.vocab_size,
        "sequence_length": SEQUENCE_LENGTH,
        "rounds": options.rounds,
        "settings_tried_seconds": bench.tried,
        "settings_chosen": bench.chosen,
        "contenders": {n: report.summarise(runs, tokens[n]) for n, runs in sizes.items()},
        "ratios_to_the_limit": {name: report.ratios(runs) for name, runs in sizes.items()},
        "pack_stage_seconds_for_tokens": report.ahead(sizes[large], tokens[large]),
        "goals": {name: goal.summary() for name, goal in goals.items()},
        "correctness": _correctness(bench, sizes),
        "peers_failed": bench.failed,
    }


def _correctness(bench: Bench, sizes: dict[str, Runs]) -> dict[str, Any]:
    """Every pack holds all tokens of its corpus, all packs of a corpus are the same, and peers had
    the same tokens. `holds`: None where ours took no part."""
    packs = {name: runs.get(report.OURS, []) for name, runs in sizes.items()}
    complete = {
        name: bool(runs) and all(run.tokens == bench.budgets[name] for run in runs)
        for name, runs in packs.items()
    }
    hashes = {name: {run.more["rows_sha256"] for run in runs} for name, runs in packs.items()}
    peers = {
        name: {
            peer: [run.tokens / bench.budgets[name] for run in items]
            for peer, items in runs.items()
            if peer not in (report.LIMIT, report.OURS)
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


def _is_committed() -> bool:
    """Whether the code that is measured is what its commit says."""
    command = ["git", "status", "--porcelain", "--", *_CODE]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.strip()


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.make_peers:
        make_environment(arguments.make_peers)
        return
    with tempfile.TemporaryDirectory(prefix="cpt-residual-data-") as temporary:
        options = _options(arguments, Path(temporary))
        options.data.mkdir(parents=True, exist_ok=True)
        try:
            result, sizes, tokens = measure(options)
        except (RunError, CptResidualError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        path = options.data / "data.json"
        if options.is_full:
            path = keep("data", result)
        else:
            path.write_text(json.dumps(result, indent=1) + "\n")
        picture = (RESULTS if options.is_full else options.data) / "data.png"
        title = f"Packing text with a BPE of {options.vocab_size:,} tokens, {usable_cores()} cores"
        report.draw(sizes, tokens, picture, title=title)
        lasting = options.is_full or arguments.data
        print(f"\nresult: {path}" if lasting else "\nnot the full run, and no --data: not kept")
    if result["correctness"]["holds"] is False:
        sys.exit(f"tokens are wrong: {json.dumps(result['correctness'], indent=1)}")


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


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--data", type=Path, help="keep corpora and store here, use them again (temporary folder)")
    add("--peers", type=Path, help="folder of datatrove's environment")
    add("--make-peers", type=Path, metavar="DIR", help="make this environment, and stop")
    add("--rounds", type=int, help=f"rounds ({ROUNDS})")
    add("--only", action="append", metavar="NAME", help="the limit and this contender (repeatable)")
    add("--large-peers", action="store_true", help="peers on the larger corpus too (minutes)")
    add("--quick", action="store_true", help="a few megabytes and one round, to try everything")
    return parser


if __name__ == "__main__":
    main()
