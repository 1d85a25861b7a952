"""What recipes and storages do to a merged model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_residual.config.merging import MergeRecipe, Storage
from cpt_residual.errors import (
    CompatibilityError,
    ConfigError,
)
from cpt_residual.methods.add import Add
from cpt_residual.methods.dare import Dare
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.methods.ties import Ties, num_to_keep, ties
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from support.merge_family import Family
from support.pico_family import Tensors, fake_model, opened, read_all, same_bits

EMBEDDING = "model.embed_tokens.weight"
MLP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def test_two_strengths(family: Family) -> None:
    found, report = family.merge(MergeRecipe(cpt_strength=0.5), alpha=0.75)
    for name, value in found.items():
        assert same_bits(value, family.exact(name, 0.75, 0.5).to(torch.bfloat16))
    exact = torch.cat([family.exact(name, 0.75, 0.5).flatten() for name in found])
    start = torch.cat([family.values["cpt"][name].flatten() for name in found])
    assert report.residual_norm == pytest.approx(float((exact - start).norm()))


def test_no_cpt_and_all_of_the_residual_is_instruct(family: Family) -> None:
    found, _ = family.merge(MergeRecipe(cpt_strength=0.0))
    for name, value in found.items():
        assert torch.equal(value.double(), family.values["instruct"][name])


def test_scales_by_module_layer_and_glob_the_last_decides(family: Family) -> None:
    scales = {"norm": 0.0, "mlp": 0.5, "model.layers.*.mlp.*": 2.0}
    found, _ = family.merge(MergeRecipe(scales=scales), alpha=0.5)
    assert torch.equal(found[NORM].double(), family.values["cpt"][NORM])
    assert torch.equal(found[MLP], family.exact(MLP, 1.0).to(torch.bfloat16))
    assert torch.equal(found[EMBEDDING], family.exact(EMBEDDING, 0.5).to(torch.bfloat16))
    with pytest.raises(ConfigError, match="mpl"):
        family.merge(MergeRecipe(scales={"mpl": 0.5}), "other")
    assert not (family.root / "other").exists()


@pytest.mark.parametrize("rows", ["none", "special_tokens"])
def test_rows_of_the_embedding(family: Family, rows: str) -> None:
    found, _ = family.merge(MergeRecipe.model_validate({"embedding_rows": rows}))
    ids = TokenSide.read(family.root / "instruct").special_ids
    special = len(ids) if rows == "special_tokens" else 0
    assert sorted(ids) == list(range(len(ids)))
    for name in (EMBEDDING, "lm_head.weight"):
        plain = family.exact(name).to(torch.bfloat16)
        assert torch.equal(found[name][:special], plain[:special])
        assert torch.equal(found[name][special:].double(), family.values["cpt"][name][special:])
    assert torch.equal(found[MLP], family.exact(MLP).to(torch.bfloat16))


def test_dare_keeps_or_scales_every_element(family: Family) -> None:
    recipe = MergeRecipe(method=Dare(drop_rate=0.5, seed=3))
    found, _ = family.merge(recipe)
    again, _ = family.merge(recipe, "again")
    other, _ = family.merge(MergeRecipe(method=Dare(drop_rate=0.5, seed=4)), "other")
    for name, value in found.items():
        cpt, plain = family.values["cpt"][name], family.exact(name) - family.values["cpt"][name]
        doubled = (cpt + 2.0 * plain).to(torch.bfloat16)
        kept = value == doubled
        assert torch.equal(value[~kept].double(), cpt[~kept])
        assert same_bits(value, again[name])
    assert any(not torch.equal(found[name], other[name]) for name in found)


def test_ties_moves_the_base_by_what_survives(family: Family) -> None:
    found, _ = family.merge(MergeRecipe(method=Ties(density=0.3)))
    for name, value in found.items():
        base, instruct, cpt = (
            family.values[role][name].flatten().numpy() for role in ("base", "instruct", "cpt")
        )
        keep = num_to_keep(base.size, 0.3)
        thresholds = tuple(
            float(np.sort(np.abs((model - base).astype(np.float32)))[-keep])
            for model in (cpt, instruct)
        )
        move = ties(
            cpt - base,
            instruct - base,
            thresholds=(thresholds[0], thresholds[1]),
            weights=(1.0, 1.0),
        )
        exact = torch.from_numpy(base + move).reshape(value.shape)
        assert torch.equal(value, exact.to(torch.bfloat16)), name


def test_low_rank_of_full_rank_is_plain_addition_to_fp32(family: Family) -> None:
    found, _ = family.merge(MergeRecipe(method=LowRank(rank=4)))
    for name, value in found.items():
        exact = family.exact(name)
        assert float((value.double() - exact).abs().max()) <= 2.0**-8 * float(exact.abs().max())
    assert torch.equal(found[NORM], family.exact(NORM).to(torch.bfloat16))
    less, _ = family.merge(MergeRecipe(method=LowRank(explained_variance=0.3)), "less")
    assert not torch.equal(less[MLP], found[MLP])


def test_automatic_strength_restores_the_component_along_the_residual(
    tmp_path: Path, tensors: Tensors
) -> None:
    family = Family(tmp_path, {name: value.float() for name, value in tensors.items()})
    found, _ = family.merge(MergeRecipe(auto_alpha="projection"))
    base, instruct = family.values["base"], family.values["instruct"]
    for name, value in found.items():
        residual = (instruct[name] - base[name]).flatten()
        travelled = (value.double() - base[name]).flatten()
        cpt = (family.values["cpt"][name] - base[name]).flatten()
        if 0.0 < 1.0 - float(cpt @ residual / (residual @ residual)) < 2.0:
            assert float(travelled @ residual) == pytest.approx(
                float(residual @ residual), rel=1e-4
            )


def test_a_residual_of_zero_is_a_mistake(family: Family) -> None:
    base = family.open("base")
    with pytest.raises(CompatibilityError, match="The residual is zero"):
        merge(family.open("cpt"), PairDelta(base, base), [Output(1.0, family.root / "o")])
    assert not (family.root / "o").exists()


def test_recipes_that_need_the_base_say_so(family: Family) -> None:
    for recipe in (
        MergeRecipe(cpt_strength=0.5),
        MergeRecipe(method=Ties()),
        MergeRecipe(auto_alpha="projection"),
    ):
        with pytest.raises(ConfigError, match="needs the base that CPT started from"):
            merge(family.open("cpt"), family.pair, [Output(1.0, family.root / "o")], recipe=recipe)
    assert not MergeRecipe(method=Add()).needs_base
    with pytest.raises(CompatibilityError, match="do not make sense"):
        merge(family.open("cpt"), family.pair, [])
    twice = [Output(1.0, family.root / "o"), Output(0.5, family.root / "o")]
    with pytest.raises(CompatibilityError, match="o: named twice"):
        merge(family.open("cpt"), family.pair, twice)
    nested = [Output(1.0, family.root / "o"), Output(0.5, family.root / "o" / "p")]
    with pytest.raises(CompatibilityError, match="p: lies in another"):
        merge(family.open("cpt"), family.pair, nested)


def test_lost_updates_count_alike_from_a_pair_and_from_a_stored_residual(tmp_path: Path) -> None:
    values = {
        "base": torch.tensor([0.0, -(2.0**-40)]),
        "instruct": torch.tensor([2.0**-60, 1.0]),  # the second element needs a correction
        "target": torch.tensor([1.0, 1.0]),
    }
    folders = {
        name: opened(fake_model(tmp_path / name, {"model.norm.weight": value}), name)
        for name, value in values.items()
    }
    compute(folders["base"], folders["instruct"], tmp_path / "r")
    pair = PairDelta(folders["base"], folders["instruct"])
    (direct,) = merge(folders["target"], pair, [Output(1.0, tmp_path / "direct")])
    stored = StoredDelta(open_residual(tmp_path / "r"))
    (other,) = merge(folders["target"], stored, [Output(1.0, tmp_path / "stored")])
    assert direct.lost_share == other.lost_share == 0.5


@pytest.mark.parametrize("method", [Dare(drop_rate=0.5), LowRank(rank=1), Add()])
def test_alpha_zero_is_the_target_whatever_the_method(
    tmp_path: Path, tensors: Tensors, method: Dare | LowRank | Add
) -> None:
    tensors[MLP][0, 0] = -0.0
    family = Family(tmp_path, tensors)
    weights = read_all(family.root / "cpt")
    weights[MLP][0, 0] = -0.0
    fake_model(family.root / "zeros", weights)
    target = opened(family.root / "zeros")
    recipe = MergeRecipe(method=method)
    merge(target, family.pair, [Output(0.0, family.root / "out")], recipe=recipe)
    for name, value in read_all(family.root / "out").items():
        assert same_bits(value, weights[name])


# --- storages ------------------------------------------------------------------------------------
def test_a_bf16_residual_states_what_it_loses(family: Family) -> None:
    manifest = compute(
        family.open("base"),
        family.open("instruct"),
        family.root / "r",
        storage=Storage(dtype="bf16"),
    )
    stored = read_all(family.root / "r")
    wrong, squares, errors = 0, 0.0, 0.0
    for name, value in stored.items():
        assert value.dtype == torch.bfloat16
        base, instruct = family.values["base"][name], family.values["instruct"][name]
        wrong += int(((base + value.double()).to(torch.bfloat16).double() != instruct).sum())
        squares += float((instruct - base).square().sum())
        errors += float((value.double() - (instruct - base)).square().sum())
    assert wrong > 0
    assert (manifest.num_wrong, manifest.bit_exact) == (wrong, False)
    assert manifest.relative_error == pytest.approx((errors / squares) ** 0.5)
    source = StoredDelta(open_residual(family.root / "r"))
    merge(family.open("cpt"), source, [Output(1.0, family.root / "out")])
    for name, value in read_all(family.root / "out").items():
        exact = family.values["cpt"][name] + stored[name].double()
        assert same_bits(value, exact.to(torch.bfloat16))


def test_bf16_storage_rounds_once_and_counts_lost_signs(tmp_path: Path) -> None:
    base = {"model.norm.weight": torch.tensor([-(2.0**-40), 1.0])}
    after = {"model.norm.weight": torch.tensor([1.0 + 2.0**-8, -0.0])}
    folders = fake_model(tmp_path / "base", base), fake_model(tmp_path / "instruct", after)
    models = opened(folders[0], "base"), opened(folders[1], "instruct")
    manifest = compute(*models, tmp_path / "r", storage=Storage(dtype="bf16"))
    stored = read_all(tmp_path / "r")["model.norm.weight"]
    assert stored.tolist() == [1.0 + 2.0**-7, -1.0]  # through fp32 the first would be 1.0
    assert manifest.num_zero_signs == 1
    assert not manifest.bit_exact


def test_a_residual_of_low_rank(family: Family) -> None:
    storage = Storage(low_rank=LowRank(rank=2))
    manifest = compute(
        family.open("base"), family.open("instruct"), family.root / "r", storage=storage
    )
    stored = read_all(family.root / "r")
    assert stored[MLP + ".left"].shape == (6, 2)
    assert stored[MLP + ".right"].shape == (2, 4)
    assert manifest.tensors[NORM].rank is None
    assert manifest.tensors[NORM].bit_exact
    residual = (family.values["instruct"][MLP] - family.values["base"][MLP]).numpy()
    left, values, right = np.linalg.svd(residual)
    best = (left[:, :2] * values[:2]) @ right[:2]
    expected = float(np.linalg.norm(residual - best) / np.linalg.norm(residual))
    assert manifest.tensors[MLP].relative_error == pytest.approx(expected, rel=1e-4)
    assert 0.0 < manifest.relative_error < 1.0
    assert manifest.num_wrong > 0
    source = StoredDelta(open_residual(family.root / "r"))
    merge(family.open("cpt"), source, [Output(1.0, family.root / "out")])
    found = read_all(family.root / "out")[MLP].double()
    exact = family.values["cpt"][MLP] + torch.from_numpy(best)
    assert float((found - exact).abs().max()) <= 2.0**-8 * float(exact.abs().max())
    assert not (family.root / "r" / ".factors").exists()
