"""An untied target and the residual of a tied family: embedding and head get the same residual."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_residual import api
from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import CompatibilityError
from cpt_residual.methods.dare import Dare
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.methods.ties import Ties
from cpt_residual.weights.interop.mergekit_yaml import mergekit_yaml
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.source import PairDelta
from support.grown_family import grown_family
from support.pico_family import Tensors, opened, read_all, real_family, same_bits, write_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def untie(source: Path, folder: Path, *, move: float = 0.0, head: str = HEAD) -> Path:
    """The model with a head that is stored, and moved from the embedding by `move`."""
    shutil.copytree(source, folder)
    tensors = read_all(source)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    noise = torch.randn(tensors[EMBEDDING].shape, generator=torch.Generator().manual_seed(7))
    moved = tensors[EMBEDDING] + move * noise.to(tensors[EMBEDDING].dtype)
    write_weights(folder, {**tensors, head: moved}, num_shards=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied family in bf16, its base_cpt untied, and untied copies of base and instruct."""
    root = tmp_path_factory.mktemp("family")
    real_family(root, model_type="qwen2", tied=True, dtype=torch.bfloat16)
    untie(root / "base_cpt", root / "target", move=0.02)
    for name in ("base", "instruct"):
        untie(root / name, root / f"untied_{name}")
    return root


def exact_sum(family: Path, alpha: float) -> Tensors:
    """target + alpha * residual in plain numpy, the head's residual being the embedding's."""
    base, instruct, target = (read_all(family / n) for n in ("base", "instruct", "target"))
    found: Tensors = {}
    for name, value in target.items():
        own = EMBEDDING if name == HEAD else name
        left, right = (each[own].double().numpy() for each in (instruct, base))
        exact = value.double().numpy() + alpha * (left - right)
        found[name] = torch.from_numpy(np.asarray(exact)).to(value.dtype)
    return found


@pytest.mark.parametrize("stored", [False, True])
def test_embedding_and_head_get_the_embeddings_residual(
    family: Path, tmp_path: Path, stored: bool
) -> None:
    pair = api.Pair(family / "base", family / "instruct")
    if stored:
        api.compute(pair.base, pair.instruct, tmp_path / "residual")
    source = tmp_path / "residual" if stored else pair
    api.plan_apply(family / "target", source, tmp_path / "out", alphas=[0.5])
    (report,) = api.apply(family / "target", source, tmp_path / "out", alphas=[0.5])
    merged, expected = read_all(tmp_path / "out"), exact_sum(family, 0.5)
    assert merged.keys() == expected.keys()
    assert all(same_bits(merged[name], value) for name, value in expected.items())
    target = opened(family / "target")
    assert report.num_parameters == target.num_parameters
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    record = json.loads((tmp_path / "out/merge.json").read_text())
    assert record["notes"] == [
        f"target: {HEAD} is not tied to {EMBEDDING} as in the residual's models, and gets the "
        "same residual"
    ]
    assert record["stops_at"], "it loads and stops"
    assert any("stops" in check for check in api.verify_model(tmp_path / "out").checks)


RECIPES = {
    "scaled": MergeRecipe(scales={"head": 0.5, "embeddings": 0.25}),
    "no rows": MergeRecipe(embedding_rows="none"),
    "special rows": MergeRecipe(embedding_rows="special_tokens"),
    "ties": MergeRecipe(method=Ties(density=0.3)),
    "strength": MergeRecipe(cpt_strength=0.7),
    "projection": MergeRecipe(auto_alpha="projection"),
    "low rank": MergeRecipe(method=LowRank(rank=3)),
}


@pytest.mark.parametrize("start", ["base", "untied_base"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_gives_what_an_untied_pair_gives(
    family: Path, tmp_path: Path, recipe: MergeRecipe, start: str
) -> None:
    """The bits of a merge with base and instruct whose heads are stored beside their embeddings."""
    target, found = opened(family / "target"), list[Tensors]()
    for prefix, base in (("", start), ("untied_", "untied_base")):
        pair = PairDelta(
            opened(family / f"{prefix}base", "base"),
            opened(family / f"{prefix}instruct", "instruct"),
        )
        folder = tmp_path / f"{prefix}out"
        merge(target, pair, [Output(0.8, folder)], recipe=recipe, base=opened(family / base))
        found.append(read_all(folder))
    left, right = found
    assert all(same_bits(left[name], value) for name, value in right.items())
    assert not same_bits(left[HEAD], left[EMBEDDING])


def test_an_untied_base_has_its_own_head(family: Path, tmp_path: Path) -> None:
    """lambda weighs target - base with the base's head, where that is another than its rows."""
    base = untie(family / "base", tmp_path / "base", move=0.5)
    target = opened(family / "target")
    pair = PairDelta(opened(family / "base", "base"), opened(family / "instruct", "instruct"))
    recipe = MergeRecipe(cpt_strength=0.5)
    merge(target, pair, [Output(0.0, tmp_path / "out")], recipe=recipe, base=opened(base))
    heads = (read_all(folder)[HEAD].double() for folder in (base, family / "target"))
    expected = sum(heads, torch.zeros(())) / 2
    assert same_bits(read_all(tmp_path / "out")[HEAD], expected.bfloat16())


def test_dropped_elements_are_the_same_in_both(family: Path, tmp_path: Path) -> None:
    pair = PairDelta(opened(family / "base", "base"), opened(family / "instruct", "instruct"))
    recipe = MergeRecipe(method=Dare(drop_rate=0.5))
    merge(opened(family / "target"), pair, [Output(1.0, tmp_path / "out")], recipe=recipe)
    merged, target = read_all(tmp_path / "out"), read_all(family / "target")
    kept = [merged[name] != target[name] for name in (EMBEDDING, HEAD)]
    assert 0.4 < float(kept[0].double().mean()) < 0.6
    assert float((kept[0] == kept[1]).double().mean()) > 0.95, "but for rounding"


@pytest.mark.parametrize("new_rows", ["instruct_row", "base_mean"])
def test_tokens_that_only_one_of_them_has(tmp_path: Path, new_rows: str) -> None:
    folders = grown_family(tmp_path, model_type="llama")
    for name in ("base", "instruct"):
        folders[f"untied_{name}"] = untie(folders[name], tmp_path / f"untied_{name}")
    target = opened(untie(folders["target"], tmp_path / "untied", move=0.02))
    recipe = MergeRecipe.model_validate(
        {"vocab_policy": "common_tokens", "new_token_rows": new_rows}
    )
    found: list[Tensors] = []
    for prefix in ("", "untied_"):
        models = (opened(folders[f"{prefix}{name}"], name) for name in ("base", "instruct"))
        pair = PairDelta(*models, vocab_policy="common_tokens")
        folder = tmp_path / f"{prefix}out"
        merge(target, pair, [Output(1.0, folder)], recipe=recipe)
        found.append(read_all(folder))
    assert found[0][HEAD].shape[0] > target.tensors[HEAD].shape[0]
    assert all(same_bits(found[0][name], value) for name, value in found[1].items())


def test_instruct_untied_is_still_instruct(family: Path, tmp_path: Path) -> None:
    pair = api.Pair(family / "base", family / "instruct")
    api.compute(pair.base, pair.instruct, tmp_path / "residual")
    for source in (pair, tmp_path / "residual"):
        with pytest.raises(CompatibilityError, match="The target is the instruct model itself"):
            api.apply(family / "untied_instruct", source, tmp_path / "out")


def test_what_has_no_exact_answer_is_refused(family: Path, tmp_path: Path) -> None:
    """A tied target has no place for two residuals, and mergekit none for one residual twice."""
    with pytest.raises(CompatibilityError, match=f"{HEAD}: instruct .* vs target missing"):
        api.apply(
            family / "base_cpt",
            api.Pair(family / "untied_base", family / "untied_instruct"),
            tmp_path / "out",
        )
    base, instruct = (opened(family / name, name) for name in ("base", "instruct"))
    with pytest.raises(CompatibilityError, match=f"{HEAD}: base missing vs target"):
        mergekit_yaml(
            base=base,
            instruct=instruct,
            target=opened(family / "target"),
            alpha=1.0,
            recipe=MergeRecipe(),
            dtype="float32",
        )
    assert not (tmp_path / "out").exists()
