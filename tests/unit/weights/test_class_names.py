"""Names, rows and ties of checkpoints as the model class has them, over releases of many kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.known_layouts import PLAIN_TYPES, class_names, plain_name
from cpt_residual.modeling.loading import build_on_meta
from cpt_residual.modeling.model_class import ask_class
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.weights.analysis.geometry import Family, measure
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import require_equal_aliases
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from support.hub_family import HubFamily, unread_tensors, write_hub_family
from support.pico_family import Tensors, fake_model, opened, read_all

ROWS = {
    "pythia": {"gpt_neox.embed_in.weight": "embeddings", "embed_out.weight": "head"},
    "gpt2": {"wte.weight": "embeddings"},
    "gptj": {
        "transformer.wte.weight": "embeddings",
        "lm_head.weight": "head",
        "lm_head.bias": "head",
    },
    "bloom": {"word_embeddings.weight": "embeddings"},
    "phi2": {
        "model.embed_tokens.weight": "embeddings",
        "lm_head.weight": "head",
        "lm_head.bias": "head",
    },
    "falcon": {"transformer.word_embeddings.weight": "embeddings"},
    "gemma3_conditional": {"language_model.model.embed_tokens.weight": "embeddings"},
    "mixtral": {"model.embed_tokens.weight": "embeddings", "lm_head.weight": "head"},
    "llama2": {"model.embed_tokens.weight": "embeddings", "lm_head.weight": "head"},
}
OPT = {
    "model_type": "opt",
    "ffn_dim": 16,
    "hidden_size": 32,
    "max_position_embeddings": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 48,
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HubFamily]:
    """Families that were written, kept for all tests of the file."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_hub_family(root / name, name) for name in ROWS}


def open_family(family: HubFamily) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    base, instruct = opened(family.base, "base"), opened(family.instruct, "instruct")
    return base, instruct, opened(family.target, "target")


def merged(family: HubFamily, out: Path, recipe: MergeRecipe, alpha: float = 1.0) -> Tensors:
    base, instruct, target = open_family(family)
    merge(
        target, PairDelta(base, instruct, recipe.vocab_policy), [Output(alpha, out)], recipe=recipe
    )
    return read_all(out)


@pytest.mark.parametrize("model_type", sorted(PLAIN_TYPES))
def test_the_table_says_what_the_classes_say(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type)
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    for field, size in (sizes | {"pad_token_id": None, "layer_types": None}).items():
        if hasattr(config, field):
            setattr(config, field, size)
    if getattr(config, "layer_types", ()) is None:
        config.layer_types = ["full_attention"]
    names = list(cast("Any", build_on_meta(config)).state_dict())
    assert [name for name in names if not plain_name(name)] == []
    left_over = "model.layers.0.self_attn.rotary_emb.inv_freq"
    names.append(left_over)
    config.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    for tied in (None, True, False):
        fields = {key: value for key, value in stated.items() if key != "tie_word_embeddings"}
        fields |= {} if tied is None else {"tie_word_embeddings": tied}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        found = class_names(tmp_path, names, model_type=model_type, tied=tied)
        asked = ask_class(tmp_path, names)
        assert (found.names, found.rows, found.tied) == (asked.names, asked.rows, asked.tied)
        assert not asked.unknown
        assert found.unread == asked.unread == (left_over,)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_row_of_a_token_moves_when_none_shall(
    name: str, families: dict[str, HubFamily], tmp_path: Path
) -> None:
    family = families[name]
    assert dict(opened(family.base).rows) == ROWS[name]
    found = merged(family, tmp_path / "out", MergeRecipe(embedding_rows="none"))
    start = read_all(family.target)
    still = {key for key in start if torch.equal(found[key], start[key])}
    assert still == set(opened(family.target).rows)
    assert len(still) == len(ROWS[name])


def test_position_embeddings_have_no_row_per_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPT))
    names = [
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
        "lm_head.weight",
    ]
    found = class_names(tmp_path, names, model_type="opt", tied=None)
    assert set(found.rows_by_name()) == {names[0], names[2]}
    assert found.tied_by_name() == {names[2]: names[0]}


def test_rows_of_any_class_are_matched_by_token(
    families: dict[str, HubFamily], tmp_path: Path
) -> None:
    """Base and target number two added tokens the other way round."""
    family = HubFamily(*(tmp_path / side for side in HubFamily._fields))
    added = ["<|a|>", "<|b|>"]
    for source, folder in zip(families["pythia"], family, strict=True):
        shutil.copytree(source, folder)
        tokenizer = cast("Any", load_tokenizer(folder))
        tokenizer.add_tokens(added[:: -1 if folder.name == "instruct" else 1])
        tokenizer.save_pretrained(folder)
    a, b = (cast("Any", load_tokenizer(family.base)).get_vocab()[token] for token in added)
    base, instruct, start = (read_all(folder) for folder in family)
    recipe = MergeRecipe(vocab_policy="common_tokens")
    found = merged(family, tmp_path / "out", recipe)
    for key in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        for row, other in ((a, b), (b, a), (7, 7)):
            move = instruct[key][other].double() - base[key][row].double()
            exact = (start[key][row].double() + move).to(start[key].dtype)
            assert torch.equal(found[key][row], exact), (key, row)
    with pytest.raises(CompatibilityError, match="do not have the same tokens"):
        merged(family, tmp_path / "other", MergeRecipe())


@pytest.mark.parametrize("name", ["pythia", "gptj", "gpt2", "llama2"])
def test_what_no_parameter_reads_is_left_out_and_recorded(
    name: str, families: dict[str, HubFamily], tmp_path: Path
) -> None:
    base, instruct, target = open_family(families[name])
    unread = base.class_names.unread
    assert unread
    manifest = compute(base, instruct, tmp_path / "residual")
    assert not manifest.tensors.keys() & set(unread)
    assert [note.partition(" tensor")[0] for note in manifest.notes] == [
        f"base: {len(unread)}",
        f"instruct: {len(unread)}",
    ]
    stored = StoredDelta(open_residual(tmp_path / "residual"))
    merge(target, stored, [Output(1.0, tmp_path / "stored")])
    direct = merged(families[name], tmp_path / "direct", MergeRecipe())
    for key, value in read_all(tmp_path / "stored").items():
        assert torch.equal(value, direct[key])
    report = measure(Family(base, instruct, target))
    assert {row.name for row in report.tensors} == set(manifest.tensors)


@pytest.mark.parametrize("num_rows", [288, 300])
def test_a_target_keeps_what_no_parameter_reads(
    num_rows: int, families: dict[str, HubFamily], tmp_path: Path
) -> None:
    """Byte for byte, also in a file whose embedding grows."""
    family = HubFamily(*(tmp_path / side for side in HubFamily._fields))
    for source, folder in zip(families["pythia"], family, strict=True):
        shutil.copytree(source, folder)
    config = json.loads((family.base / "config.json").read_text())
    shutil.copy(family.base / "model.safetensors", family.target / "model.safetensors")
    shutil.copy(family.base / "config.json", family.target / "config.json")
    if num_rows > 288:  # instruct has more tokens than the target has room for
        tokenizer = cast("Any", load_tokenizer(family.instruct))
        tokenizer.add_tokens([f"<|{number}|>" for number in range(num_rows - len(tokenizer))])
        tokenizer.save_pretrained(family.instruct)
        weights = load_file(family.instruct / "model.safetensors")
        for key in ROWS["pythia"]:
            weights[key] = torch.cat([weights[key], weights[key][: num_rows - 288]])
        save_file(weights, family.instruct / "model.safetensors")
    found = merged(family, tmp_path / "out", MergeRecipe(vocab_policy="common_tokens"))
    masks = unread_tensors(config, torch.float16)
    assert masks
    for key, value in masks.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype
    assert {len(found[key]) for key in ROWS["pythia"]} == {num_rows}
    merged(family, tmp_path / "same", MergeRecipe(vocab_policy="common_tokens"), alpha=0.0)
    if num_rows == 288:
        same = (tmp_path / "same/model.safetensors").read_bytes()
        assert same == (family.target / "model.safetensors").read_bytes()


def test_a_tensor_that_the_class_reads_is_no_constant(tmp_path: Path) -> None:
    wrong = {"model.embed_tokens.weight": torch.ones(4, 4, dtype=torch.bool)}
    model = opened(fake_model(tmp_path / "model", wrong))
    with pytest.raises(CompatibilityError, match="BOOL, which are no weights"):
        _ = model.tensors


def test_one_parameter_under_two_names_is_refused(
    families: dict[str, HubFamily], tmp_path: Path
) -> None:
    tensors = read_all(families["gpt2"].base)
    tensors["transformer.wte.weight"] = tensors["wte.weight"].clone()
    shutil.copytree(families["gpt2"].base, tmp_path / "model")
    save_file(tensors, tmp_path / "model/model.safetensors")
    with pytest.raises(ArtifactError) as caught:
        _ = opened(tmp_path / "model").tensors
    assert "transformer.wte.weight and wte.weight: one parameter" in caught.value.problems


def test_an_unknown_class_is_refused_where_it_would_have_to_say(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for side in HubFamily._fields:
        tensors = {"embed.weight": torch.tensor(random.random((8, 4), dtype=np.float32))}
        fake_model(tmp_path / side, tensors, config={"model_type": "of_the_future"})
    pair = PairDelta(opened(tmp_path / "base"), opened(tmp_path / "instruct"))
    target = opened(tmp_path / "target")
    merge(target, pair, [Output(1.0, tmp_path / "plain")])
    for recipe in (MergeRecipe(embedding_rows="none"), MergeRecipe(scales={"embeddings": 0.0})):
        with pytest.raises(CompatibilityError, match="one row per token cannot be told") as caught:
            merge(target, pair, [Output(1.0, tmp_path / "none")], recipe=recipe)
        (problem,) = caught.value.problems
        assert "of_the_future" in problem
        assert problem.count(". ") == 0, "no advice of transformers"
        assert not (tmp_path / "none").exists()


def test_a_class_that_is_not_known_is_in_the_notes(tmp_path: Path) -> None:
    config = {"model_type": "of_the_future"}
    tensors = {"embed.weight": torch.ones(8, 4)}
    for side in HubFamily._fields:
        fake_model(tmp_path / side, tensors, config=config)
    base, instruct = opened(tmp_path / "base", "base"), opened(tmp_path / "instruct", "instruct")
    notes = compute(base, instruct, tmp_path / "residual").notes
    assert [note.partition(":")[0] for note in notes] == ["base", "instruct"]
    assert all("its class cannot be asked" in note and "of_the_future" in note for note in notes)


@pytest.mark.parametrize("nested", [False, True])
def test_a_head_beside_a_tie_that_no_class_explains_is_refused(
    tmp_path: Path, nested: bool
) -> None:
    tie: dict[str, object] = {"tie_word_embeddings": True}
    config = {**({"text_config": tie} if nested else tie), "model_type": "of_the_future"}
    tensors = {"embed.weight": torch.ones(8, 4), "lm_head.weight": torch.zeros(8, 4)}
    model = opened(fake_model(tmp_path / "m", tensors, config=config))
    with pytest.raises(CompatibilityError, match=r"lm_head\.weight is stored") as caught:
        require_equal_aliases(model, threads=1)
    assert "of_the_future" in caught.value.problems[0]
    del tensors["lm_head.weight"]
    require_equal_aliases(opened(fake_model(tmp_path / "one", tensors, config=config)), threads=1)
