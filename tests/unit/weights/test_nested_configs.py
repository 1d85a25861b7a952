"""Models whose text model has a config of its own inside config.json (Gemma 3 with images)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from cpt_residual.modeling.side_files import eos_ids_of, text_fields, with_vocab_size
from cpt_residual.weights.chat_contract import verify_stops
from support.hub_family import HubFamily, write_hub_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> HubFamily:
    return write_hub_family(tmp_path_factory.mktemp("family"), "gemma3_conditional")


def test_generation_stops_at_every_id(family: HubFamily) -> None:
    assert verify_stops(family.instruct) == [1, 4]


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
