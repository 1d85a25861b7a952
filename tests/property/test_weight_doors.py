"""Whatever stands in a model's config.json, index or headers: every verb ends right or in an error
of ours, leaves nothing behind and does not take the machine's memory."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cpt_residual import api
from cpt_residual.config.merging import EXACT_STORAGE, Storage
from cpt_residual.errors import CptResidualError
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.modeling.side_files import CONFIG_FILE
from cpt_residual.weights.io.checkpoint import INDEX_FILE
from cpt_residual.weights.io.reader import Streaming
from support.broken_files import Mutation, mutate_config, mutate_index, mutate_shard, mutated
from support.pico_family import read_all, real_family, write_weights

Verb = Callable[[], object]
Door = Callable[[dict[str, Path], int], tuple[str, Path]]
"""Which file a seed changes: the role of its model, and the file."""
STREAMING = Streaming(threads=1)
SMALL = Storage(dtype="bf16", low_rank=LowRank(rank=2))
FAST = api.ApplyOptions(verify=False, streaming=STREAMING)
ROLES = ("base", "instruct", "base_cpt")
MAX_LINE = 700
MEMORY = 400 * 2**20


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that load; base_cpt in three shards."""
    root = tmp_path_factory.mktemp("family")
    found = real_family(root, model_type="llama", tied=False, dtype=torch.bfloat16)
    tensors = read_all(found["base_cpt"])
    (found["base_cpt"] / "model.safetensors").unlink()
    write_weights(found["base_cpt"], tensors, num_shards=3)
    api.compute(found["base"], found["instruct"], root / "residual")
    return {**found, "residual": root / "residual"}


def _verbs(family: dict[str, Path], out: Path, role: str, seed: int) -> dict[str, Verb]:
    """What reads the model of `role`; the slow ones for some of the seeds only."""
    pair, target = api.Pair(family["base"], family["instruct"]), family["base_cpt"]
    verbs: dict[str, Verb] = {
        "inspect": lambda: api.inspect(family[role]),
        "apply": lambda: api.apply(target, pair, out, options=FAST),
        "geometry": lambda: api.geometry(pair, target, streaming=STREAMING),
    }
    if role != "base_cpt":
        verbs["compute"] = lambda: api.compute(
            pair.base,
            pair.instruct,
            out,
            storage=SMALL if seed % 7 == 0 else EXACT_STORAGE,
            streaming=STREAMING,
        )
    if seed % 7 == 0:
        verbs["verify"] = lambda: api.verify_model(family[role])
        verbs["verify residual"] = lambda: api.verify_residual(
            family["residual"], base=pair.base, instruct=pair.instruct, streaming=STREAMING
        )
    return verbs


def _is_refused(run: Verb) -> bool:
    try:
        run()
    except CptResidualError as error:
        return error.exit_code == 2 and len(error.what) < MAX_LINE
    return False


def _check(family: dict[str, Path], door: Door, mutation: Mutation, seeds: range) -> None:
    root, out = family["base"].parent, family["base"].parent / "out"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_refused = 0
    for seed in seeds:
        role, path = door(family, seed)
        good = path.read_bytes()
        path.write_bytes(mutated(path, mutation, seed))
        before = sorted(root.rglob("*"))
        try:
            for verb, run in _verbs(family, out, role, seed).items():
                try:
                    num_refused += _is_refused(run)
                except Exception as error:
                    error.add_note(f"{verb} of {role}, seed {seed}: {path.read_bytes()[:3000]!r}")
                    raise
                shutil.rmtree(out, ignore_errors=True)
                assert sorted(root.rglob("*")) == before, f"{verb} of {role}, seed {seed}"
        finally:
            path.write_bytes(good)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown * 1024 < MEMORY
    assert num_refused > len(seeds)


def _config(family: dict[str, Path], seed: int) -> tuple[str, Path]:
    role = ROLES[seed % 3]
    return role, family[role] / CONFIG_FILE


def _shard(family: dict[str, Path], seed: int) -> tuple[str, Path]:
    role = ROLES[seed % 3]
    return role, max(family[role].glob("*.safetensors"))


def _index(family: dict[str, Path], seed: int) -> tuple[str, Path]:
    role = ROLES[1 + seed % 2]
    return role, family[role] / INDEX_FILE


def _seeds(default: int, slow: int) -> list[object]:
    later = range(default, default + slow)
    return [range(default), pytest.param(later, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", _seeds(100, 500), ids=len)
def test_any_config_json(family: dict[str, Path], seeds: range) -> None:
    _check(family, _config, mutate_config, seeds)


@pytest.mark.parametrize("seeds", _seeds(70, 350), ids=len)
def test_any_header(family: dict[str, Path], seeds: range) -> None:
    _check(family, _shard, mutate_shard, seeds)


@pytest.mark.parametrize("seeds", _seeds(40, 200), ids=len)
def test_any_index(family: dict[str, Path], seeds: range) -> None:
    _check(family, _index, mutate_index, seeds)
