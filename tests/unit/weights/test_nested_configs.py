"""Models whose text model has a config of its own inside config.json (Gemma 3 with images)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import save_file

from cpt_residual import api
from cpt_residual.api import ApplyOptions, Pair
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.side_files import eos_ids_of, text_fields, with_vocab_size
from cpt_residual.weights.tokens.stops import verify_stops
from support.hub_family import HubFamily, write_hub_family
from support.pico_family import Tensors, fake_model, read_all


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> HubFamily:
    return write_hub_family(tmp_path_factory.mktemp("family"), "gemma3_conditional")


def test_generation_stops_at_every_id(family: HubFamily) -> None:
    assert verify_stops(family.instruct) == [1, 4]


@pytest.fixture(scope="module")
def text(family: HubFamily, tmp_path_factory: pytest.TempPathFactory) -> HubFamily:
    """The text part of each, as the text-only class has it."""
    root = tmp_path_factory.mktemp("text")
    folders = HubFamily(*(root / side for side in HubFamily._fields))
    for source, folder in zip(family, folders, strict=True):
        shutil.copytree(source, folder)
        config = json.loads((source / "config.json").read_text())
        top = {key: config[key] for key in ("eos_token_id", "torch_dtype") if key in config}
        (folder / "config.json").write_text(json.dumps({**config["text_config"], **top}))
        tensors = read_all(source)
        named = {key.removeprefix("language_model."): value for key, value in tensors.items()}
        kept = {key: named[key] for key in named if key.startswith("model.")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "pair"])
@pytest.mark.parametrize("texts", ["b.t", "b..", ".it", "bi.", "..t", "..."])
def test_a_text_model_is_the_text_part_of_a_whole_one(
    texts: str, stored: bool, family: HubFamily, text: HubFamily, tmp_path: Path
) -> None:
    """texts: which of base, instruct and target are text-only."""
    base, instruct, target = (letter != "." for letter in texts)
    kinds = (family, text)
    start = kinds[target].target
    pair = Pair(kinds[base].base, kinds[instruct].instruct)
    if stored:
        api.compute(pair.base, pair.instruct, tmp_path / "residual")
    source = tmp_path / "residual" if stored else pair
    api.apply(start, source, tmp_path / "out", options=ApplyOptions(verify=stored and base))
    found, before = read_all(tmp_path / "out"), read_all(start)
    exact = {
        key: before[key].double() + two.double() - one.double()
        for key, one, two in _texts(text, before)
    }
    assert len(exact) == len(read_all(text.base))
    for key, value in exact.items():
        assert torch.equal(found[key], value.to(before[key].dtype)), key
    others = before.keys() - exact.keys()
    if base or instruct:  # only their text could be subtracted
        assert all(torch.equal(found[key], before[key]) for key in others)
    assert bool(others) is not bool(target)
    notes = json.loads((tmp_path / "out/merge.json").read_text())["notes"]
    partial = not stored and base + instruct + target in (1, 2)
    partial = partial or (not target and base + instruct > 0)
    assert any("no part of the text model" in note for note in notes) is partial


def test_a_text_part_that_is_not_known_is_refused_in_a_line(tmp_path: Path) -> None:
    """transformers has no causal class for Mistral 3."""
    names = ("model.embed_tokens.weight", "model.norm.weight")
    weights = {name: torch.zeros(8, 4) for name in names}
    base = fake_model(tmp_path / "base", weights, config={"model_type": "mistral"})
    nested = {f"language_model.{name}": value for name, value in weights.items()}
    config = {"model_type": "mistral3", "text_config": {"model_type": "mistral"}}
    instruct = fake_model(tmp_path / "instruct", nested, config=config)
    with pytest.raises(CompatibilityError, match="has a text model as one of its parts") as caught:
        api.compute(base, instruct, tmp_path / "residual")
    assert not caught.value.problems
    assert "save its text model by itself" in caught.value.remedy


def _texts(text: HubFamily, start: Tensors) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The target's name of every tensor of the text model, with base's and instruct's values."""
    one, two = read_all(text.base), read_all(text.instruct)
    for key, value in one.items():
        yield (key if key in start else f"language_model.{key}"), value, two[key]


def test_ids_and_sizes_are_read_and_written_where_the_text_model_has_them(tmp_path: Path) -> None:
    nested: dict[str, JsonValue] = {
        "model_type": "gemma3",
        "text_config": {"vocab_size": 8, "eos_token_id": 3},
    }
    assert text_fields(nested)["vocab_size"] == 8
    assert with_vocab_size(nested, 9)["text_config"] == {"vocab_size": 9, "eos_token_id": 3}
    assert "vocab_size" not in with_vocab_size(nested, 9)
    assert with_vocab_size({"vocab_size": 8}, 9) == {"vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert eos_ids_of(tmp_path) == [3]
    (tmp_path / "config.json").write_text(json.dumps({**nested, "eos_token_id": [1, 4]}))
    assert eos_ids_of(tmp_path) == [1, 4]
