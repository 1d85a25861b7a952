"""The shards and the index of a merged model whose vocabulary has grown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cpt_residual.weights.alignment import output_index, output_shards
from cpt_residual.weights.vocabulary import NONE, RowPlan
from support.pico_family import Tensors, fake_model, opened


def grown_by_two(num_rows: int) -> RowPlan:
    rows = np.arange(num_rows + 2)
    new = rows >= num_rows
    return RowPlan(
        target_row=np.where(new, NONE, rows),
        residual_row=rows,
        instruct_only=new,
        common_rows=rows[:num_rows],
        tokens={},
        added={},
        identity=False,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_totals_of_the_index_follow(tmp_path: Path, tensors: Tensors, tied: bool) -> None:
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder = fake_model(tmp_path / "m", tensors, num_shards=3, config={"tie_word_embeddings": tied})
    path = folder / "model.safetensors.index.json"
    fields = json.loads(path.read_text())
    unique = [value for name, value in tensors.items() if not (tied and name == "lm_head.weight")]
    before = sum(value.numel() for value in unique)
    fields["metadata"]["total_parameters"] = before
    path.write_text(json.dumps(fields))
    target = opened(folder)
    shards = output_shards(target, grown_by_two(8))
    written = json.loads(output_index(target, shards) or b"")
    assert written["metadata"] == {
        "total_size": sum(2 * value.numel() for value in tensors.values()) + 2 * 2 * (2 * 4),
        "total_parameters": before + (1 if tied else 2) * (2 * 4),
    }
    assert written["weight_map"] == fields["weight_map"]
    del fields["metadata"]["total_parameters"]
    path.write_text(json.dumps(fields))
    written = json.loads(output_index(opened(folder), shards) or b"")
    assert written["metadata"].keys() == {"total_size"}, "nothing is made up"
