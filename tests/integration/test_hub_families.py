"""compute, apply, verify and geometry over model families as they lie on the hub.

Base and instruct are releases (fields unstated, old spellings, tensors that nothing reads), the
target is base after training as the installed transformers saves it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cpt_residual import api
from cpt_residual.weights.residual.residual_format import open_residual
from support.hub_configs import ANSWER_END, TEXT_END
from support.hub_family import HubFamily, write_hub_family
from support.hub_releases import RELEASES
from support.pico_family import Tensors, read_all, same_bits

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module", params=sorted(RELEASES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HubFamily:
    root = tmp_path_factory.mktemp(request.param)
    found = write_hub_family(root, request.param)
    api.compute(found.base, found.instruct, root / "residual")
    return found


@pytest.fixture(scope="module")
def residual(family: HubFamily) -> Path:
    return family.base.parent / "residual"


@pytest.fixture(scope="module")
def merged(family: HubFamily, residual: Path) -> Path:
    out = residual.parent / "merged"
    api.apply(family.target, residual, out)
    return out


def rounded_to_bf16(exact: Doubles) -> torch.Tensor:
    """The nearest bf16, of two equally near the even one."""
    low = exact.astype(np.float32).view(np.uint32).astype(np.int64) >> 16
    codes = np.stack([low - 1, low, low + 1])
    values = (codes << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    distance = np.abs(values - exact)
    best = np.lexsort((codes & 1, distance), axis=0)[0]
    nearest = np.take_along_axis(codes, best[None], axis=0)[0].astype(np.uint16)
    return torch.from_numpy(nearest.view(np.int16)).view(torch.bfloat16)


ROUND: dict[torch.dtype, Callable[[Doubles], torch.Tensor]] = {
    torch.bfloat16: rounded_to_bf16,
    torch.float16: lambda exact: torch.from_numpy(exact.astype(np.float16)),
    torch.float32: lambda exact: torch.from_numpy(exact.astype(np.float32)),
}


def by_plain_name(folder: Path) -> Tensors:
    """Names without the prefixes that releases and today's transformers do not agree on."""
    return {
        name.removeprefix("transformer.").replace("vision_model.", ""): tensor
        for name, tensor in read_all(folder).items()
    }


def test_base_and_residual_are_instruct_and_sums_are_rounded_once(
    family: HubFamily, residual: Path, merged: Path
) -> None:
    assert open_residual(residual).manifest.bit_exact
    verified = api.verify_residual(residual, base=family.base, instruct=family.instruct)
    assert any("bit for bit" in check for check in verified.checks), verified.checks
    base, instruct = by_plain_name(family.base), by_plain_name(family.instruct)
    target, found = by_plain_name(family.target), by_plain_name(merged)
    assert found.keys() == target.keys()
    for name, start in target.items():
        left, right, low = (each[name].double().numpy() for each in (target, instruct, base))
        assert same_bits(found[name], ROUND[start.dtype](left + (right - low))), name


def test_the_merged_model_stops_at_either_end(family: HubFamily, merged: Path) -> None:
    generation = json.loads((merged / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == {TEXT_END, ANSWER_END}
    record = json.loads((merged / "merge.json").read_text())
    assert set(record["stops_at"]) == {TEXT_END, ANSWER_END}
    assert api.verify_model(merged).checks
    assert family.target.name == record["inputs"][0]["name"].rpartition("/")[2]


def test_geometry_says_how_far_both_went(family: HubFamily) -> None:
    report = api.geometry(api.Pair(family.base, family.instruct), family.target)
    base, target = by_plain_name(family.base), by_plain_name(family.target)
    moves = [(value.double() - base[name].double()).flatten() for name, value in target.items()]
    start = torch.cat([base[name].double().flatten() for name in target])
    expected = float(torch.cat(moves).norm() / start.norm())
    assert report.total.drift == pytest.approx(expected, rel=1e-6)
