"""Trained models of releases whose files hold more, or other names, than transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpt_residual.errors import WorkerError
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.train.final import ExactMasters, write_model
from cpt_residual.train.stored import open_start, stored_dtype
from support.hub_family import write_hub_family
from support.pico_family import opened


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama1", "mixtral", "pythia"])
def test_a_trained_release_is_written_whole(name: str, tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, name).base
    dtype = stored_dtype(start)
    model = load_causal_lm(start, dtype=torch.float32, attention="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    out = tmp_path / "out"
    write_model(model, start, out, dtype=dtype, deepspeed=False, is_first=True)
    before, after = open_start(start), open_start(out)
    assert after.own_names.keys() == before.own_names.keys()
    assert not after.class_names.unread
    assert opened(out).num_parameters == opened(start).num_parameters


def test_updates_are_counted_under_other_names(tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, "gpt2").base
    model = load_causal_lm(start, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-20)
    out = tmp_path / "out"
    lost = write_model(model, start, out, dtype=torch.bfloat16, deepspeed=False, is_first=True)
    assert lost is not None
    assert lost > 0.0


def test_no_share_is_reported_where_a_part_of_the_model_would_not_count(tmp_path: Path) -> None:
    """The experts, which are most of the model, are stored one by one and joined by the class."""
    start = write_hub_family(tmp_path, "mixtral").base
    model = load_causal_lm(start, dtype=torch.float32)
    out = tmp_path / "out"
    lost = write_model(model, start, out, dtype=torch.bfloat16, deepspeed=False, is_first=True)
    assert lost is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_exact_masters_need_whole_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, "mixtral").base
    stored = load_file(start / "model.safetensors")
    save_file({name: each.to(dtype) for name, each in stored.items()}, start / "model.safetensors")
    model = load_causal_lm(start, dtype=torch.float32)
    with pytest.raises(WorkerError, match=r"stores 4 parameter\(s\) in parts"):
        ExactMasters(start).on_train_begin(*cast("Any", (None, None, None)), model=model)


def test_parts_in_bf16_are_exact_as_they_are(tmp_path: Path) -> None:
    start = write_hub_family(tmp_path, "mixtral").base
    model = load_causal_lm(start, dtype=torch.bfloat16)
    ExactMasters(start).on_train_begin(*cast("Any", (None, None, None)), model=model)
