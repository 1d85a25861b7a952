"""A target whose vocabulary CPT has grown, an instruct with tokens of its own: every row of the
merged model is what its token says, it loads, chats and stops."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cpt_residual.config.merging import MergeRecipe, Storage
from cpt_residual.errors import CompatibilityError
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.weights.io import reader
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from cpt_residual.weights.tokens.stops import verify_stops
from support.grown_family import grown_family
from support.pico_family import opened, read_all

EMBEDDING = "model.embed_tokens.weight"
ALIGNED = MergeRecipe(vocab_policy="common_tokens")
Weights = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module", params=[("llama", True), ("qwen2", False)])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    model_type, tied = request.param
    root = tmp_path_factory.mktemp("family")
    return grown_family(root, model_type=model_type, tied=tied)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that begin and end inside rows."""
    monkeypatch.setattr(reader, "BLOCK", 1000 + 7)


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def pair_of(family: dict[str, Path]) -> PairDelta:
    base, instruct = opened(family["base"], "base"), opened(family["instruct"], "instruct")
    return PairDelta(base, instruct, "common_tokens")


def expected_rows(
    family: dict[str, Path], name: str, tokens: dict[str, int], *, alpha: float, mean: bool
) -> npt.NDArray[np.float64]:
    """Row by row in float64, straight from the definition."""
    sides = {role: TokenSide.read(folder) for role, folder in family.items()}
    rows = {role: weights(folder)[name].astype(np.float64) for role, folder in family.items()}
    ids = {role: side.ids for role, side in sides.items()}
    common = [token for token in ids["base"] if token in ids["instruct"]]
    base_mean = np.float32(rows["base"][[ids["base"][t] for t in common]].mean(axis=0))
    shared = [token for token in common if token in ids["target"]]
    target_mean = np.float32(rows["target"][[ids["target"][t] for t in shared]].mean(axis=0))
    merged = np.empty((len(tokens), rows["base"].shape[1]))
    for token, row in tokens.items():
        if token in ids["base"] and token in ids["instruct"]:
            move = rows["instruct"][ids["instruct"][token]] - rows["base"][ids["base"][token]]
            merged[row] = rows["target"][ids["target"][token]] + alpha * move
        elif token in ids["instruct"]:
            own = rows["instruct"][ids["instruct"][token]]
            merged[row] = target_mean + alpha * (own - base_mean) if mean else own
        else:
            merged[row] = rows["target"][ids["target"][token]]
    return merged


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_every_row_is_what_its_token_says(
    family: dict[str, Path], tmp_path: Path, mean: bool, stored: bool
) -> None:
    pair = pair_of(family)
    source: PairDelta | StoredDelta = pair
    if stored:
        manifest = compute(pair.base, pair.instruct, tmp_path / "r", vocab_policy="common_tokens")
        assert manifest.bit_exact
        source = StoredDelta(open_residual(tmp_path / "r"))
    recipe = ALIGNED.model_copy(update={"new_token_rows": "base_mean" if mean else "instruct_row"})
    target = opened(family["target"])
    (report,) = merge(target, source, [Output(0.5, tmp_path / "out")], recipe=recipe)
    merged = opened(tmp_path / "out")
    assert report.num_parameters == merged.num_parameters > target.num_parameters
    tokens = dict(TokenSide.read(tmp_path / "out").ids)
    assert set(TokenSide.read(family["target"]).ids.items()) <= set(tokens.items())
    found = weights(tmp_path / "out")
    base, instruct, start = (weights(family[role]) for role in ("base", "instruct", "target"))
    assert found.keys() == start.keys()
    for name, value in found.items():
        if name in target.rows:
            exact = expected_rows(family, name, tokens, alpha=0.5, mean=mean)
        else:
            exact = start[name] + 0.5 * (instruct[name].astype(np.float64) - base[name])
        np.testing.assert_allclose(value, exact, rtol=2e-7, atol=1e-9)
    assert len(verify_stops(tmp_path / "out")) >= 2
    model = cast("Any", load_causal_lm(tmp_path / "out", dtype=None))
    tokenizer = cast("Any", load_tokenizer(tmp_path / "out"))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "<code> Städte"}], tokenize=0
    )
    ids = tokenizer(prompt)["input_ids"]
    assert tokens["<code>"] in ids
    assert tokens["<|im_end|>"] in ids
    assert bool(torch.isfinite(model(torch.tensor([ids])).logits).all())


def test_stored_and_direct_give_the_same_bytes(family: dict[str, Path], tmp_path: Path) -> None:
    pair = pair_of(family)
    compute(pair.base, pair.instruct, tmp_path / "r", vocab_policy="common_tokens")
    recipe = ALIGNED.model_copy(update={"new_token_rows": "base_mean"})
    target = opened(family["target"])
    merge(target, pair, [Output(1.0, tmp_path / "direct")], recipe=recipe)
    stored = StoredDelta(open_residual(tmp_path / "r"))
    merge(target, stored, [Output(1.0, tmp_path / "stored")], recipe=recipe)
    for path in (tmp_path / "direct").iterdir():
        assert (tmp_path / "stored" / path.name).read_bytes() == path.read_bytes(), path.name


def test_rows_can_be_left_out(family: dict[str, Path], tmp_path: Path) -> None:
    recipe = ALIGNED.model_copy(update={"embedding_rows": "none"})
    target = opened(family["target"])
    merge(target, pair_of(family), [Output(1.0, tmp_path / "out")], recipe=recipe)
    start, found = weights(family["target"])[EMBEDDING], weights(tmp_path / "out")[EMBEDDING]
    assert np.array_equal(found[: len(start)], start)
    assert len(found) > len(start)


def test_low_rank_keeps_the_rows_of_new_tokens_whole(
    family: dict[str, Path], tmp_path: Path
) -> None:
    pair = pair_of(family)
    compute(
        pair.base,
        pair.instruct,
        tmp_path / "r",
        storage=Storage(low_rank=LowRank(rank=2)),
        vocab_policy="common_tokens",
    )
    stored = read_all(tmp_path / "r")
    assert EMBEDDING in stored
    assert "model.layers.0.mlp.up_proj.weight.left" in stored
    target = opened(family["target"])
    source = StoredDelta(open_residual(tmp_path / "r"))
    merge(target, source, [Output(1.0, tmp_path / "out")], recipe=ALIGNED)
    row = TokenSide.read(tmp_path / "out").ids["<|im_end|>"]
    own = TokenSide.read(family["instruct"]).ids["<|im_end|>"]
    expected = weights(family["instruct"])[EMBEDDING][own]
    assert np.array_equal(weights(tmp_path / "out")[EMBEDDING][row], expected)


def test_what_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    base, instruct = opened(family["base"], "base"), opened(family["instruct"], "instruct")
    with pytest.raises(CompatibilityError, match="do not have the same tokens") as caught:
        compute(base, instruct, tmp_path / "r")
    assert "rows: 280 vs" in "\n".join(caught.value.problems)
    assert "--vocab-policy common_tokens" in str(caught.value)
    target, pair = opened(family["target"]), pair_of(family)
    with pytest.raises(CompatibilityError, match="do not have the same tokens"):
        merge(target, pair, [Output(1.0, tmp_path / "out")])
    recipe = ALIGNED.model_copy(update={"cpt_strength": 0.5})
    with pytest.raises(CompatibilityError, match="only plain addition is defined"):
        merge(target, pair, [Output(1.0, tmp_path / "out")], recipe=recipe, base=base)
    assert not list(tmp_path.iterdir())


def test_nan_in_a_row_of_its_own_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    broken = dict(family)
    broken["instruct"] = Path(shutil.copytree(family["instruct"], tmp_path / "instruct"))
    file = broken["instruct"] / "model.safetensors"
    values = load_file(file)
    row = TokenSide.read(broken["instruct"]).ids["<|im_end|>"]
    values[EMBEDDING][row, 3] = np.nan
    save_file(values, file, metadata={"format": "pt"})
    target = opened(family["target"])
    with pytest.raises(CompatibilityError, match=f"{EMBEDDING}: NaN or Inf"):
        merge(target, pair_of(broken), [Output(1.0, tmp_path / "out")], recipe=ALIGNED)
    assert not (tmp_path / "out").exists()


def test_scales_reach_new_rows(family: dict[str, Path], tmp_path: Path) -> None:
    recipe = ALIGNED.model_copy(
        update={"new_token_rows": "base_mean", "scales": {"embeddings": 0.0, "norm": 0.5}}
    )
    target = opened(family["target"])
    merge(target, pair_of(family), [Output(1.0, tmp_path / "out")], recipe=recipe)
    start, found = weights(family["target"])[EMBEDDING], weights(tmp_path / "out")[EMBEDDING]
    assert np.array_equal(found[: len(start)], start)
    new = found[len(start) :]
    assert len(new)
    assert np.array_equal(new, np.broadcast_to(new[0], new.shape)), "the mean row of the target"
