"""The shards and the index of a merged model whose vocabulary has grown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_residual.weights.merge.vocab_rules import output_index, output_shards
from cpt_residual.weights.tokens.vocab_alignment import NONE, RowPlan
from support.pico_family import Tensors, fake_model, opened, raw_shard


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


def test_null_for_metadata_is_none_at_all(tmp_path: Path, tensors: Tensors) -> None:
    folder = fake_model(tmp_path / "m", tensors, num_shards=2)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metadata": None}))
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        raw_shard(file, {**json.loads(raw[8:end]), "__metadata__": None}, raw[end:])
    target = opened(folder)
    shards = output_shards(target, grown_by_two(8))
    rows = {e.name: e.shape[0] for shard in shards for e in shard.tensors if e.name in target.rows}
    assert set(rows.values()) == {10}
    index = json.loads(output_index(target, shards) or b"")
    assert index["metadata"].keys() == {"total_size"}


def test_tensors_without_elements_keep_their_shape(tmp_path: Path, tensors: Tensors) -> None:
    """One begins where the embedding does."""
    embedding = "model.embed_tokens.weight"
    nothing = torch.ones(0, 3, dtype=torch.bfloat16)
    tensors = {"before": nothing, embedding: tensors.pop(embedding), **tensors}
    file = fake_model(tmp_path / "m", tensors) / "model.safetensors"
    header: dict[str, object] = {}
    data = b""
    for name, value in tensors.items():
        raw = value.contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": span}
        data += raw
    raw_shard(file, header, data)
    target = opened(tmp_path / "m")
    first = target.tensors["before"], target.tensors[embedding]
    assert len({entry.offset for entry in first}) == 1
    (shard,) = output_shards(target, grown_by_two(8))
    found = {entry.name: entry.shape for entry in shard.tensors}
    assert found["before"] == (0, 3)
    assert found[embedding][0] == 10
    assert found.keys() == tensors.keys()
