"""A residual that nobody touched is verified, whatever it holds and however it is stored."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_residual import api
from cpt_residual.config.merging import Storage
from cpt_residual.errors import ArtifactError
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.weights.residual.residual_format import MANIFEST_FILE, open_residual
from support.pico_family import Tensors, fake_model, read_all

SHAPES = {
    "model.embed_tokens.weight": (12, 4),
    "model.layers.0.self_attn.q_proj.weight": (6, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (12, 4),
}
STORAGES = (
    Storage(),
    Storage(dtype="bf16"),
    Storage(low_rank=LowRank(rank=1)),
    Storage(low_rank=LowRank(rank=4)),
    Storage(low_rank=LowRank(explained_variance=0.9), dtype="bf16"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pair_of(
    root: Path, dtypes: tuple[torch.dtype, torch.dtype], *, step: float, seed: int
) -> api.Pair:
    """base and instruct that differ by `step` relative to weights of all scales."""
    generator = torch.Generator().manual_seed(seed)

    def randn(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base: Tensors = {}
    instruct: Tensors = {}
    for name, shape in SHAPES.items():
        start = randn(shape) * 10.0 ** (3 * torch.rand(shape, generator=generator) - 2)
        base[name] = start.to(dtypes[0])
        instruct[name] = (start * (1 + step * randn(shape))).to(dtypes[1])
    return api.Pair(fake_model(root / "base", base), fake_model(root / "instruct", instruct))


@given(
    base=st.sampled_from(DTYPES),
    instruct=st.sampled_from(DTYPES),
    storage=st.sampled_from(STORAGES),
    step=st.sampled_from([1e-7, 1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_an_untouched_residual_is_verified(
    base: torch.dtype, instruct: torch.dtype, storage: Storage, step: float, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pair = pair_of(root, (base, instruct), step=step, seed=seed)
        api.compute(pair.base, pair.instruct, root / "r", storage=storage)
        assert "4 tensors have the recorded norms" in api.verify_residual(root / "r").checks
        api.verify_residual(root / "r", base=pair.base, instruct=pair.instruct)


def test_another_norm_is_still_found_where_there_are_corrections(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, (torch.float32, torch.float32), step=1.0, seed=3)
    manifest = api.compute(pair.base, pair.instruct, tmp_path / "r")
    assert manifest.num_rounded > 10
    path = tmp_path / "r" / MANIFEST_FILE
    fields = json.loads(path.read_text())
    fields["tensors"]["lm_head.weight"]["residual_norm"] *= 1 + 1e-8
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=r"not what was written\n  lm_head.weight: norm"):
        api.verify_residual(tmp_path / "r")
    assert open_residual(tmp_path / "r").manifest.num_rounded == manifest.num_rounded


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_tensors_without_elements(tmp_path: Path, storage: Storage) -> None:
    shapes = {"model.layers.0.mlp.gate_proj.weight": (0, 8), "model.layers.0.mlp.x": (8, 0)}
    shapes |= {"model.layers.0.bias": (0,)}
    for name, seed in (("base", 0), ("instruct", 1), ("cpt", 2)):
        torch.manual_seed(seed)
        full = {each: torch.randn(shape) for each, shape in SHAPES.items()}
        fake_model(tmp_path / name, full | {each: torch.zeros(s) for each, s in shapes.items()})
    pair = api.Pair(tmp_path / "base", tmp_path / "instruct")
    api.compute(pair.base, pair.instruct, tmp_path / "r", storage=storage)
    api.verify_residual(tmp_path / "r", base=pair.base, instruct=pair.instruct)
    api.apply(
        tmp_path / "cpt", tmp_path / "r", tmp_path / "o", options=api.ApplyOptions(verify=False)
    )
    merged = read_all(tmp_path / "o")
    assert {each: tuple(merged[each].shape) for each in shapes} == shapes
