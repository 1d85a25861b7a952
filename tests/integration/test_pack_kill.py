"""kill -9 while a large pack is built: what was encoded is used again, the end is the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.packs import write_texts
from support.tiny_tokenizer import save, texts, tiny_tokenizer

BUILD = """
import sys
from dataclasses import replace
from pathlib import Path
from cpt_residual.config.packs import Pack
from cpt_residual.core.stage import ArtifactRef, RunContext
from cpt_residual.stages import pack as module
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.data.packing import build as packing
from cpt_residual.data.tokenize import encoded_blocks as supply

folder, *works = map(Path, sys.argv[1:])
original = supply.Tokenising
packing.Tokenising = lambda **how: original(**how, shard_bytes=20_000)

def ref(path):
    return ArtifactRef("x", "x", "f", "c", path, {})

sources = [{"corpus": "a", "share": 0.7}, {"corpus": "b", "share": 0.3, "packing": "best_fit"}]
pack = Pack(
    tokenizer="m", sequence_length=128, token_budget=400_000, sources=sources, repeat=True
)
stage = module.PackStage(
    "p", pack, None, None, (CorpusInput(None, "a.jsonl"), CorpusInput(None, "b.jsonl")), seed=0
)
inputs = {"tokenizer": ref(folder / "model"), "source_0": ref(folder), "source_1": ref(folder)}
for work, least in zip(works, (1000, 10**9)):
    module._PARALLEL_TOKENS = least
    (work / "out").mkdir(parents=True, exist_ok=True)
    stage.build(inputs, work, RunContext(run_dir=work, threads=2))
"""


def start(folder: Path, *works: Path) -> subprocess.Popen[bytes]:
    """Build the pack in the first of `works` with processes that encode, then in the second one
    without."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", BUILD, str(folder), *map(str, works)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def finished(work: Path) -> dict[str, int]:
    """The token files that are there, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (work / "tokens").glob("*.tokens")}


def killed_with(process: subprocess.Popen[bytes], work: Path, num_files: int) -> dict[str, int]:
    """Kill when so many token files are there; what is there then."""
    deadline = time.monotonic() + 120
    while len(finished(work)) < num_files:
        assert process.poll() is None, "it ended by itself: kill earlier"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = finished(work)
    process.kill()
    process.wait()
    return found


@pytest.mark.parametrize(
    "kills", [pytest.param((4,), id="once"), pytest.param((2, 9, 16), marks=pytest.mark.slow)]
)
def test_a_killed_pack_goes_on_and_ends_with_the_same_bytes(
    kills: tuple[int, ...], tmp_path: Path
) -> None:
    some = [f"{number} {one}" for number, one in enumerate(texts(200))]
    write_texts(tmp_path / "a.jsonl", some * 10)
    write_texts(tmp_path / "b.jsonl", [" ".join(some[n : n + 9]) for n in range(150)] * 4)
    save(tiny_tokenizer(), tmp_path / "model")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    before: dict[str, int] = {}
    for num_files in kills:
        process = start(tmp_path, killed)
        found = killed_with(process, killed, max(num_files, len(before) + 1))
        assert {name: found.get(name) for name in before} == before, "nothing is encoded again"
        before = found
    assert start(tmp_path, killed, whole).wait() == 0
    after = finished(killed)
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    assert not (whole / "tokens").exists()
    assert hashes(killed / "out") == hashes(whole / "out")
