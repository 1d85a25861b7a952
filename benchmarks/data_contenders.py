"""Who takes part in `data.py`: commands, and the environment of the peer that needs its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from data_stages import SEQUENCE_LENGTH, Workplace
from harness import HERE, Command, Contender, make_environment

from cpt_residual.core.measure import usable_cores
from cpt_residual.modeling.text_encoder import CACHED_WORDS

DATATROVE = "0.10.1"
_BATCH_MEGABYTES = (1, 8, 64)
_DATATROVE_BATCHES = (100, 1000)


def make_environments(folder: Path) -> None:
    """The environment of datatrove below `folder`, with the same tokenizers library as ours."""
    libraries = [f"datatrove=={DATATROVE}", f"tokenizers=={version('tokenizers')}", "orjson"]
    make_environment(folder / "datatrove", libraries)


def datatrove_python(peers: Path | None) -> Path | None:
    """The interpreter of datatrove's environment, where there is one."""
    python = peers.absolute() / "datatrove" / "bin" / "python" if peers else None
    return python if python and python.is_file() else None


def contenders(
    place: Workplace, corpus: str, budgets: Mapping[str, int], peers: Path | None
) -> list[Contender]:
    """All that can run here; the limit first. `budgets`: the tokens of each corpus, known when the
    limit has run."""
    text, folder = place.text(corpus), place.build(place.tokenizer())
    tokenizer, cores = folder / "tokenizer.json", usable_cores()
    threads = ["TOKENIZERS_PARALLELISM=true", f"RAYON_NUM_THREADS={cores}"]
    alone = ["TOKENIZERS_PARALLELISM=false"]

    def encode(megabytes: int, words: int) -> Command:
        limit = _program(threads, sys.executable, "data_limit.py")
        return lambda out: _with(limit, text, tokenizer, megabytes * 1_000_000, words, _report(out))

    def pack(out: Path) -> list[str]:
        start = _program([], sys.executable, "data_stages.py")
        budget = budgets[corpus]
        return _with(start, place.folder, place.vocab_size, corpus, budget, _report(out))

    def group(out: Path) -> list[str]:
        start = _program(alone, sys.executable, "data_map.py")
        return _with(start, text, folder, cores, SEQUENCE_LENGTH, out, _report(out))

    def trove(python: Path, batch: int) -> Command:
        start = _program(alone, str(python), "data_datatrove.py")
        return lambda out: _with(start, text, tokenizer, batch, cores, out, _report(out))

    limits = {f"batches of {size} MB": encode(size, 0) for size in _BATCH_MEGABYTES}
    small = {f"{CACHED_WORDS} words": encode(_BATCH_MEGABYTES[0], CACHED_WORDS)}
    found = [
        Contender("encode_batch_fast", "limit", limits),
        Contender("pack_stage", "ours", {"": pack}),
        Contender("limit_small_cache", "peer", small),
        Contender("datasets_map", "peer", {"": group}),
    ]
    python = datatrove_python(peers)
    if python is not None:
        settings = {
            f"batches of {size} documents": trove(python, size) for size in _DATATROVE_BATCHES
        }
        found.append(Contender("datatrove", "peer", settings))
    return found


def _program(variables: Sequence[str], python: str, script: str) -> list[str]:
    return ["env", "HF_HUB_OFFLINE=1", *variables, python, str(HERE / script)]


def _with(start: list[str], *arguments: object) -> list[str]:
    return [*start, *map(str, arguments)]


def _report(out: Path) -> Path:
    return out.with_name("report.json")
