"""A target that is instruct itself is refused: it has the residual already."""

from __future__ import annotations

import shutil

import pytest
import torch

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.merge.double_apply_check import require_not_instruct
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import DeltaSource, StoredDelta
from support.merge_family import Family
from support.pico_family import Tensors, fake_model, opened, read_all

SAID = "The target is the instruct model itself"


@pytest.fixture(params=["pair", "stored"])
def source(request: pytest.FixtureRequest, family: Family) -> DeltaSource:
    if request.param == "pair":
        return family.pair
    compute(family.open("base"), family.open("instruct"), family.root / "r")
    return StoredDelta(open_residual(family.root / "r"))


def copied(family: Family, name: str, tensors: Tensors, *, num_shards: int = 1) -> Checkpoint:
    return opened(fake_model(family.root / name, tensors, num_shards=num_shards))


def test_instruct_is_refused_in_any_dress(family: Family, source: DeltaSource) -> None:
    instruct = read_all(family.root / "instruct")
    wide = {name: value.float() for name, value in instruct.items()}
    targets = (
        opened(family.root / "instruct"),
        copied(family, "copy", instruct),
        copied(family, "cut_elsewhere", instruct, num_shards=3),
        copied(family, "wide", wide),
    )
    for target in targets:
        with pytest.raises(CompatibilityError, match=SAID) as caught:
            merge(target, source, [Output(0.5, family.root / "out")])
        assert str(target.path) in caught.value.problems[0]
        assert "alpha 1 + a" in caught.value.remedy
    assert not (family.root / "out").exists()


def test_one_element_makes_another_model(family: Family, source: DeltaSource) -> None:
    tensors = read_all(family.root / "instruct")
    tensors["lm_head.weight"][7, 3] *= 1.5
    target = copied(family, "near", tensors)
    merge(target, source, [Output(1.0, family.root / "out")])


def test_taking_the_residual_away_is_no_mistake(family: Family, source: DeltaSource) -> None:
    target = opened(family.root / "instruct")
    merge(target, source, [Output(-1.0, family.root / "out"), Output(0.0, family.root / "same")])
    base, found = read_all(family.root / "base"), read_all(family.root / "out")
    assert all(torch.equal(found[name], base[name]) for name in base)
    outputs = [Output(-1.0, family.root / "a"), Output(1.0, family.root / "b")]
    with pytest.raises(CompatibilityError, match=SAID):
        merge(target, source, outputs)


def test_a_vocabulary_that_has_grown(family: Family) -> None:
    """Instruct with a row more is still instruct."""
    tensors = read_all(family.root / "instruct")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(1, 4, dtype=torch.bfloat16)])
    target = copied(family, "grown", tensors)
    with pytest.raises(CompatibilityError, match=SAID):
        require_not_instruct(target, family.pair, alphas=[1.0])
    shutil.rmtree(family.root / "grown")
    tensors["lm_head.weight"][0, 0] += 1.0
    target = copied(family, "grown", tensors)
    require_not_instruct(target, family.pair, alphas=[1.0])
