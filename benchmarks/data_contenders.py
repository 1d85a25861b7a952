"""Who takes part in `data.py`: commands, and the environment of the peer that needs its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from data_stages import SEQUENCE_LENGTH, Workplace

from cpt_residual.core.measure import usable_cores
from cpt_residual.modeling.text_encoder import CACHED_WORDS

DATATROVE = "0.10.1"
OFFLINE = ("env", "-u", "PYTHONDONTWRITEBYTECODE", "HF_HUB_OFFLINE=1")
_HERE = Path(__file__).absolute().parent
_BATCH_MEGABYTES = (1, 8, 64)
_DATATROVE_BATCHES = (100, 1000)

Command = Callable[[str, int, Path], list[str]]
"""From corpus, token budget and output folder to the command; it writes `report.json` there."""


@dataclass(frozen=True)
class Contender:
    """One measured program. Of several `settings` the fastest is found first, then used."""

    name: str
    kind: Literal["limit", "ours", "peer"]
    settings: Mapping[str, Command]


def contenders(place: Workplace, tokenizer: Path, peers: Path | None) -> list[Contender]:
    """All that can run here; the limit first. `tokenizer`: its folder."""
    everybody = [
        _limit(place, tokenizer),
        _ours(place),
        _small_cache(place, tokenizer),
        _map(place, tokenizer),
    ]
    python = datatrove_python(peers)
    return [*everybody, _datatrove(place, tokenizer, python)] if python else everybody


def make_environment(folder: Path) -> None:
    """The environment of datatrove below `folder`, with the same tokenizers library as ours."""
    place = folder / "datatrove"
    libraries = [f"datatrove=={DATATROVE}", f"tokenizers=={version('tokenizers')}", "orjson"]
    print(f"making {place} with {', '.join(libraries)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = str(place / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *libraries], check=True)


def datatrove_python(peers: Path | None) -> Path | None:
    """The interpreter of datatrove's environment, where there is one."""
    python = peers.absolute() / "datatrove" / "bin" / "python" if peers else None
    return python if python and python.is_file() else None


def _limit(place: Workplace, tokenizer: Path) -> Contender:
    return Contender(
        "encode_batch_fast",
        "limit",
        {f"batches of {size} MB": _encode(place, tokenizer, size) for size in _BATCH_MEGABYTES},
    )


def _small_cache(place: Workplace, tokenizer: Path) -> Contender:
    """The same with as many words remembered as our encoder has: how much of ours is due to it."""
    setting = _encode(place, tokenizer, _BATCH_MEGABYTES[0], cached_words=CACHED_WORDS)
    return Contender("limit_small_cache", "peer", {f"{CACHED_WORDS} words": setting})


def _encode(place: Workplace, tokenizer: Path, megabytes: int, *, cached_words: int = 0) -> Command:
    start = [
        *OFFLINE,
        "TOKENIZERS_PARALLELISM=true",
        f"RAYON_NUM_THREADS={usable_cores()}",
        sys.executable,
        str(_HERE / "data_limit.py"),
    ]
    size = str(megabytes * 1_000_000)
    return lambda name, _, out: [
        *start,
        str(place.text(name)),
        str(tokenizer / "tokenizer.json"),
        size,
        str(cached_words),
        _report(out),
    ]


def _ours(place: Workplace) -> Contender:
    start = [*OFFLINE, sys.executable, str(_HERE / "data_stages.py"), str(place.folder)]
    return Contender(
        "pack_stage",
        "ours",
        {
            "": lambda name, budget, out: [
                *start,
                str(place.vocab_size),
                name,
                str(budget),
                _report(out),
            ]
        },
    )


def _map(place: Workplace, tokenizer: Path) -> Contender:
    start = [
        *OFFLINE,
        "TOKENIZERS_PARALLELISM=false",
        sys.executable,
        str(_HERE / "data_map.py"),
    ]
    return Contender(
        "datasets_map",
        "peer",
        {
            "": lambda name, _, out: [
                *start,
                str(place.text(name)),
                str(tokenizer),
                str(usable_cores()),
                str(SEQUENCE_LENGTH),
                str(out),
                _report(out),
            ]
        },
    )


def _datatrove(place: Workplace, tokenizer: Path, python: Path) -> Contender:
    start = [
        *OFFLINE,
        "TOKENIZERS_PARALLELISM=false",
        str(python),
        str(_HERE / "data_datatrove.py"),
    ]

    def settings(batch: int) -> Command:
        return lambda name, _, out: [
            *start,
            str(place.text(name)),
            str(tokenizer / "tokenizer.json"),
            str(batch),
            str(usable_cores()),
            str(out),
            _report(out),
        ]

    return Contender(
        "datatrove",
        "peer",
        {f"batches of {size} documents": settings(size) for size in _DATATROVE_BATCHES},
    )


def _report(out: Path) -> str:
    return str(out / "report.json")
